"""Checks of a user's settings: one error for all faults, unknown choices, unread keys."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitswin_jax.core.types import UserError


class Faults(list[str]):
    """Lines about values that a user must change, gathered so that one error names them all."""

    def need(self, holds: Any, line: str) -> None:
        """Adds a line unless what it asks for holds."""
        if not holds:
            self.append(line)

    def check(self, where: str = "") -> None:
        """Raises UserError of all lines, after `where`, if there are any."""
        if self:
            raise UserError(f"{where}{'; '.join(self)}.")


def wrong_choice(key: str, value: Any, known: Iterable[Any]) -> list[str]:
    """Returns [] if a value is one of the known ones, and else one line with the nearest of them.

    For checks that collect several faults before they raise.
    """
    known = list(known)
    if value in known:
        return []
    names = [str(each) for each in known]
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return [f"{key}={value!r} must be one of {', '.join(names)}{hint}"]


def near_multiples(size: tuple[int, int], step: tuple[int, int]) -> str:
    """Returns the nearest sizes (height, width) that a step divides, as a message has them.

    >>> near_multiples((15, 30), (4, 4))
    '12x28 or 16x32'
    """
    below = [max(n // s, 1) * s for n, s in zip(size, step, strict=True)]
    above = [-(-n // s) * s for n, s in zip(size, step, strict=True)]
    return " or ".join(f"{h}x{w}" for h, w in dict.fromkeys([tuple(below), tuple(above)]))


def divisors(number: int) -> str:
    """Returns the divisors of a number above 0, as a message has them.

    >>> divisors(12)
    '1, 2, 3, 4, 6 or 12'
    """
    *first, last = (str(n) for n in range(1, number + 1) if number % n == 0)
    return f"{', '.join(first)} or {last}" if first else last


def one_of(key: str, value: Any, known: Iterable[Any]) -> Any:
    """Returns a value that must be one of the known ones; of a mapping, the value's entry.

    `key` is where the user set it, such as `optim.name`. Raises UserError, with the nearest known
    value, for any other.
    """
    Faults(wrong_choice(key, value, known)).check()
    return known[value] if isinstance(known, Mapping) else value


def own_keys(choice: str, make: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword-only arguments of `make`: those given in `optim`, or else its defaults.

    A key that is None is not given. `choice` names what chose `make`, such as "name='sgd'". Raises
    UserError that lists the keys that `make` does not read.
    """
    parameters = inspect.signature(make).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    given = {key: value for key, value in given.items() if value is not None}
    if unread := [f"optim.{key}={value!r}" for key, value in given.items() if key not in own]:
        also = f"of such keys it reads {', '.join(own)}" if own else "it has no such keys"
        raise UserError(f"optim.{choice} does not read {', '.join(unread)}; {also}.")
    return own | given

"""What a section of a config may name, and which keys of `config.optim` what it named reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitswin_jax.core.types import UserError, nearest


def check_choice(key: str, value: str, known: Iterable[str], *, section: str = "optim") -> None:
    """Raises UserError, with the nearest, where a section's key is none of the known names."""
    known = list(known)
    if value not in known:
        hint = nearest(value, known) or "."
        raise UserError(f"{section}.{key}={value!r} is none of {', '.join(known)}{hint}")


def own_keys(choice: str, make: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword-only parameters of `make`: as given in `optim`, or its defaults.

    What is None is not given. `choice` is what chose `make`, such as "name='sgd'". Raises UserError
    that lists the keys that it does not read.
    """
    parameters = inspect.signature(make).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    given = {key: value for key, value in given.items() if value is not None}
    if unread := [f"optim.{key}={value!r}" for key, value in given.items() if key not in own]:
        also = f"of such keys it reads {', '.join(own)}" if own else "it has no such keys"
        raise UserError(f"optim.{choice} does not read {', '.join(unread)}; {also}.")
    return own | given

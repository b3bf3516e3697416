"""Out of memory, on the host or on a device, as one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from vitswin_jax.core.types import UserError

_AMOUNT = re.compile(r"llocat\w* ([\d.]+ ?[kKMGTP]?i?B?(?:ytes)?)")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@contextlib.contextmanager
def in_one_line_without_memory(advice: str) -> Iterator[None]:
    """Makes a UserError, with `advice`, of Python's MemoryError and of JAX's RESOURCE_EXHAUSTED."""
    try:
        yield
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        raise UserError(f"out of memory{_asked(str(error))}; {advice}") from error


def is_lack_of_memory(error: BaseException) -> bool:
    """Returns whether an error is a lack of memory. JAX, which need not be here, has its own."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def _asked(text: str) -> str:
    """Returns how much was asked for, if an error's text says it.

    >>> _asked("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.50GiB.")
    ' (1.6 GB more were asked for)'
    """
    found = _AMOUNT.search(text)
    parts = found and re.fullmatch(r"([\d.]+) ?([kKMGTP]?)(i?).*", found[1].strip())
    if not parts:
        return ""
    size = float(parts[1].rstrip(".")) * (1024 if parts[3] else 1000) ** _POWERS[parts[2]]
    return f" ({size / 1e9:.1f} GB more were asked for)"

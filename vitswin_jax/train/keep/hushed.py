"""Tracebacks that Orbax's threads print of an error, which are kept off the screen."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from typing import Any


def hush_tracebacks() -> Callable[[], None]:
    """Keeps off the screen what Orbax's threads print of an error that is raised as one line.

    Orbax waits for the first write that fails; of the others, asyncio logs each exception that
    nobody asked for. Returns a function that ends this.
    """

    def is_line(record: logging.LogRecord) -> bool:
        return not record.exc_info

    def show(unraisable: Any) -> None:
        # Of writes that were given up with the one that failed.
        if not re.search("Event loop is closed|was never awaited", str(unraisable.exc_value)):
            before(unraisable)

    def undo() -> None:
        sys.unraisablehook = before
        for each in loggers:
            each.removeFilter(is_line)

    before, loggers = sys.unraisablehook, [logging.getLogger(name) for name in ("absl", "asyncio")]
    for each in loggers:
        each.addFilter(is_line)
    sys.unraisablehook = show
    return undo

"""The time at which this process started, before its first line of Python."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_SLOWEST = 60.0  # seconds for Python itself to start; a longer time is that of another clock
_STAT = Path("/proc/self/stat")
_STARTED = 19  # of the fields after the process's name: ticks from the machine's start


def process_start() -> float:
    """Returns when this process started, on `time.monotonic`; called in its first lines.

    Where the system does not tell it, as on macOS, that is now.
    """
    now = time.monotonic()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(_STAT.read_text(encoding="ascii").rpartition(")")[2].split()[_STARTED])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        if 0 <= age <= _SLOWEST:
            return now - age
    return now

"""How a process that loads images treats the memory it frees."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MB of what is freed, instead of handing it back at once.

    Images come and go by the megabyte, and fresh pages for each take longer than resizing it:
    without this, decoding and cropping one takes 1.4 times as long. Other C libraries stay as they
    are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 64 << 20)
        mallopt(_MMAP_THRESHOLD, 16 << 20)

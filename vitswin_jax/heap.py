"""The C library's heap: memory that a program frees is kept for its next call."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os

# <malloc.h> of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_NEVER = 2**31 - 1
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, where JAX computes on CPU and glibc is there.

    XLA's CPU client allocates all that a program needs for the time of a call, hundreds of MB in a
    training step, and glibc takes as much from the system and gives it back: each call faults in
    every page again, which costs up to a fifth of the step. Must come before JAX has started its
    threads, for those have heaps of their own. Returns whether it is done; memory that was used
    once stays with the process. Elsewhere nothing is changed: accelerators have their memory, and
    threads that decode images for them do better with heaps of their own.
    """
    if not _on_cpu():
        return False
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False  # another C library
    settings = ((_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    done = [change(*setting) for setting in settings]
    return all(done)


def _on_cpu() -> bool:
    """Returns whether JAX will find nothing but the CPU, without having it look."""
    chosen = [value for name in PLATFORM_VARIABLES if (value := os.environ.get(name))]
    if chosen:
        return chosen[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))

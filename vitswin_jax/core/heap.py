"""The C library's heap: a process keeps the memory that it frees, for its later allocations."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from typing import Any

# <malloc.h> of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_MB = 2**20
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
ASYNC_DISPATCH = "jax_cpu_enable_async_dispatch"
COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX's monitoring calls the compilation of a program."""
LARGE = 1.0
"""Seconds of compilation from which on the compiler's freed memory is given back."""

_keeps_all = False


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, where JAX computes on CPU and glibc is there.

    XLA's CPU client allocates all that a program needs for the time of a call, hundreds of MB in a
    training step, and glibc takes as much from the system and gives it back: each call faults in
    every page again, which costs up to a fifth of the step. Only the heap of a process's first
    thread can hold such large pieces, so JAX runs programs in the calling thread (no asynchronous
    dispatch), which should be the first. The compiler's memory is given back, since no step needs
    it again.

    Call it before JAX looks for devices. Returns whether the process now keeps its memory. Changes
    nothing where accelerators compute, and where JAX_CPU_ENABLE_ASYNC_DISPATCH is set.
    """
    global _keeps_all  # noqa: PLW0603  of the process, as the heap is
    if _keeps_all:
        return True
    libc = _libc()
    if libc is None or not _on_cpu() or ASYNC_DISPATCH.upper() in os.environ:
        return False
    import jax  # here, for processes that only decode images do without

    libc.mallopt(_MMAP_THRESHOLD, _NEVER)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    jax.config.update(ASYNC_DISPATCH, False)

    def give_back(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED and duration_secs > LARGE:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(give_back)
    _keeps_all = True
    return True


def keep_freed_images() -> None:
    """Has this process keep up to 64 MB of what it frees, instead of handing it back at once.

    Images come and go by the megabyte, and fresh pages for each take longer than resizing it:
    without this, decoding and cropping one takes 1.4 times as long. Other C libraries stay as they
    are, and so does a process that keeps all.
    """
    libc = _libc()
    if libc is not None and not _keeps_all:
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MB)
        libc.mallopt(_MMAP_THRESHOLD, 16 * _MB)


def _libc() -> Any:
    """Returns the C library where it is glibc, else None."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt, libc.malloc_trim  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    return libc


def _on_cpu() -> bool:
    """Returns whether JAX will find nothing but the CPU, without having it look."""
    chosen = [value for name in PLATFORM_VARIABLES if (value := os.environ.get(name))]
    if chosen:
        return chosen[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))

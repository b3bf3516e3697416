"""JAX's ends of a process by std::terminate and abort, with a line of ours in place of a dump."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import signal
from collections.abc import Callable, Iterator

from jax._src import distributed

_kept: list[object] = []  # C functions, which nothing else refers to


def end_by(handler: Callable[[], None]) -> None:
    """Has JAX's threads call `handler`, which is to end the process, where they would abort."""
    end, at_signal = ctypes.CFUNCTYPE(None)(handler), ctypes.CFUNCTYPE(None, ctypes.c_int)
    abort = at_signal(lambda number: handler())
    _kept.extend((end, abort))
    ctypes.CDLL(None).signal(signal.SIGABRT, abort)
    with contextlib.suppress(OSError, AttributeError):  # another C++ library: abort then
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(end)


@contextlib.contextmanager
def without_dumps() -> Iterator[None]:
    """Has the client that JAX makes in the block terminate rather than print stacks and abort.

    It cannot give a function of Python's the status that it would; so that it calls none, and ends
    in std::terminate.
    """
    make = distributed._jax.get_distributed_runtime_client
    told = {"missed_heartbeat_callback": lambda status: None}
    if not all(name in (make.__doc__ or "") for name in told):
        told = {}
    distributed._jax.get_distributed_runtime_client = functools.partial(make, **told)
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = make

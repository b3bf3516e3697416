"""Stopping on request: SIGTERM, which clusters send before they take a machine away."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from vitswin_jax.train.hosts.join import EveryHostError


class StoppedError(EveryHostError):
    """A run that was asked to stop, and has saved all it needs to go on."""

    exit_code = 128 + signal.SIGTERM

    @classmethod
    def at(cls, step: int, total_steps: int) -> StoppedError:
        """Returns the error of a run that stopped behind `step`."""
        return cls(
            f"stopped by SIGTERM at step {step} of {total_steps}; all is saved, and the same "
            "command goes on from there."
        )


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Gives a function, to be called once behind each step: whether to stop there.

    On one host, SIGTERM asks for it, and a second one ends the process as it would have. Python
    allows handlers in the main thread alone; elsewhere nothing is heard. Of several hosts, JAX's
    coordination service hears the SIGTERM of any, and has all stop behind the same step.
    """
    if jax.distributed.is_initialized():
        steps = itertools.count(1)  # of this process: the service may be asked to stop before any
        yield lambda: multihost_utils.reached_preemption_sync_point(next(steps))
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)

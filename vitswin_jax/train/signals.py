"""Stopping on request: SIGTERM, which clusters send before they take a machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from vitswin_jax.types import UserError


class StoppedError(UserError):
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
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Gives an event that SIGTERM sets; a second SIGTERM ends the process as it would have.

    Python allows handlers in the main thread alone; elsewhere the event is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)

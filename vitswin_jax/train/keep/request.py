"""Requests that end a running run with results: a file in its workdir, or a callback."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import jax

from vitswin_jax.train.keep.callbacks import Callbacks
from vitswin_jax.train.keep.workdir import STOP

_PERIOD = 0.2  # seconds between two looks, which a network's folder takes milliseconds for


class Requests:
    """Looks for what asks a run to end; only the first host does."""

    def __init__(self, workdir: Path, callbacks: Callbacks) -> None:
        """Removes a file that was meant for a run before this one; callbacks may ask, too."""
        self._path, self._next, self._callbacks = workdir / STOP, 0.0, callbacks
        self._looks = jax.process_index() == 0
        self.forget()

    def __call__(self) -> bool:
        """Returns whether the run is asked to end."""
        if self._looks and self._callbacks.asks_to_end:
            return True
        now = time.monotonic()
        if not self._looks or now < self._next:
            return False
        self._next = now + _PERIOD
        return self._path.exists()

    def forget(self) -> None:
        """Removes the file."""
        if self._looks:
            with contextlib.suppress(OSError):
                self._path.unlink()

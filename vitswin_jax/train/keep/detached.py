"""A logger on a thread of its own, so that a slow or failing service cannot delay or end a run."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping

from vitswin_jax.core.terminal import logger
from vitswin_jax.train.keep.loggers import Logger
from vitswin_jax.weights.runs import METRICS

log = logger(__name__)

PATIENCE = 30.0
"""Seconds that the end of a run waits for a service."""

_MOST = 10_000  # rows that wait for a service; a row has some 20 numbers
_LENGTH = 160  # characters of a service's own message


class Detached:
    """A logger that `make` opens and that is given its rows on a thread of its own, in order.

    The first failure there is a warning, and later rows are tried all the same. At the end of the
    run, `close` waits `patience` seconds at most; rows that were lost are reported, and
    metrics.jsonl has every row.
    """

    def __init__(
        self, name: str, make: Callable[[], Logger], *, patience: float = PATIENCE
    ) -> None:
        self._name, self._make, self._patience = name, make, patience
        self._rows: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_MOST)
        self._given = self._taken = 0
        self._reported = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Leaves a row to the thread; of one that is far behind, new rows are lost."""
        self._given += 1
        try:
            self._rows.put_nowait((step, dict(numbers)))
        except queue.Full:
            self._report(f"is more than {_MOST:,} rows late")

    def close(self) -> None:
        """Waits for the thread, `patience` seconds at most, and reports rows that were lost."""
        end = time.monotonic() + self._patience
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=self._patience)
        self._thread.join(max(end - time.monotonic(), 0.0))
        if self._thread.is_alive():
            log.warning(
                "%s: did not finish within %g s, so the run ends without it; %s has every row.",
                self._name,
                self._patience,
                METRICS,
            )
        elif lost := self._given - self._taken:
            log.warning(
                "%s: %d of %d rows were lost; %s has every row.",
                self._name,
                lost,
                self._given,
                METRICS,
            )

    def _serve(self) -> None:
        try:
            service = self._make()
        except Exception as error:  # a service's library may raise anything
            self._report(f"cannot be opened: {_shown(error)}")
            return
        while (row := self._rows.get()) is not None:
            try:
                service.log(*row)
                self._taken += 1
            except Exception as error:
                self._report(f"has not taken a row: {_shown(error)}")
        try:
            service.close()
        except Exception as error:
            self._report(f"cannot be closed: {_shown(error)}")

    def _report(self, what: str) -> None:
        """Warns once; what follows has the same cause as a rule."""
        if not self._reported:
            self._reported = True
            log.warning("%s: %s; the run does not wait for it.", self._name, what)


def _shown(error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return f"{kind} ({text[:_LENGTH]})" if text else kind

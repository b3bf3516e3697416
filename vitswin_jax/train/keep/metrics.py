"""A run's metrics, from the device to the loggers, without making the device wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax

from vitswin_jax.core.goodput import DEVICE, EVALUATE, SAVE
from vitswin_jax.core.rows import STEP, read_rows
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.callbacks import Callbacks
from vitswin_jax.train.keep.journal import Hosts, Journal
from vitswin_jax.train.keep.loggers import TIME, TRAIN, Jsonl, Logger, Progress
from vitswin_jax.train.keep.timing import InputWatch, shares
from vitswin_jax.train.run.plan import Plan
from vitswin_jax.weights.runs import METRICS

Item = TypeVar("Item")

SECONDS = f"{TIME}seconds"
"""Since the run began, without the time between its processes."""

Window = Sequence[Sequence[Any]]
"""Steps, each with its metrics: (step, {name: value}), as lists where they were read."""


class StepLog:
    """Gathers each step's metrics on the device and fetches them one window late.

    So the device never waits for the log. `settle` fetches everything, as before a save. `window`
    has what had been gathered of a window when a checkpoint was saved, so that a resumed run
    writes the same means as one that was never stopped.
    """

    def __init__(self, window: Window = ()) -> None:
        self._window: list[Sequence[Any]] = list(window)
        self._closed: list[Sequence[Any]] = []

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of the step that led to `step`."""
        self._window.append((step, metrics))

    def turn(self) -> tuple[int, dict[str, float]] | None:
        """Closes the window; returns (last step, means) of the one before, None for the first."""
        row = self._fetch(self._closed)
        self._closed, self._window = self._window, []
        return row

    def settle(self) -> tuple[tuple[int, dict[str, float]] | None, Window]:
        """Returns the row of the closed window, if there is one, and what the open one has."""
        row = self._fetch(self._closed)
        window = _on_host(self._window)
        self._closed, self._window = [], [*window]
        return row, tuple(window)

    @staticmethod
    def _fetch(window: Window) -> tuple[int, dict[str, float]] | None:
        if not window:
            return None
        rows = [row for _, row in _on_host(window)]
        # Of doubles, as a window that was read from a checkpoint has them.
        return window[-1][0], {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _on_host(window: Window) -> list[tuple[int, dict[str, float]]]:
    """Fetches a window; raises UserError that names the step of what is not finite."""
    values = jax.device_get([metrics for _, metrics in window])
    rows = [
        (step, {key: float(value) for key, value in metrics.items()})
        for (step, _), metrics in zip(window, values, strict=True)
    ]
    for step, metrics in rows:
        if bad := [f"{key} is {value}" for key, value in metrics.items() if not np.isfinite(value)]:
            raise UserError(
                f"{', '.join(bad)} at step {step}; the run stops, and its newest checkpoint is "
                "from an earlier step. Try a lower optim.peak_lr, a longer warmup or "
                "optim.max_grad_norm."
            )
    return rows


def seconds_until(path: Path, step: int) -> float:
    """Returns how long a run took up to a step, 0.0 where its rows do not say."""
    rows = [row for _, row in read_rows(path).lines if row[STEP] <= step and SECONDS in row]
    return float(rows[-1][SECONDS] or 0.0) if rows else 0.0


class Recorder:
    """Gathers a run's metrics and gives them to its loggers, as often as the plan says."""

    def __init__(
        self,
        workdir: Path,
        plan: Plan,
        schedule: optax.Schedule | None,
        *,
        start_step: int,
        tested: bool = False,
        window: Window = (),
        more_loggers: Callable[[], Sequence[Logger]] = tuple,
        callbacks: Callbacks | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`tested` says whether the state of `start_step` was evaluated before it was saved.

        `more_loggers` opens what the run has besides metrics.jsonl and its progress.
        `journal` has the laps of this process, which are counted from here on for the rows.
        """
        self._callbacks = callbacks or Callbacks(())
        self._plan, self._schedule = plan, schedule
        self._progress: Progress | None = None
        self._loggers: list[Logger] = []
        self._seconds = 0.0
        if jax.process_index() == 0:  # which rewrites the file, so that the others do not read it
            self._seconds = seconds_until(workdir / METRICS, start_step)
            rows = Jsonl(workdir, start_step=start_step, tested=tested)
            self._progress = Progress(plan, start_step=start_step)
            self._loggers = [rows, *more_loggers(), self._progress]
        self._log = StepLog(window)
        self._journal, self._input = journal or Journal(), InputWatch()
        self._laps = self._journal.laps
        self._laps.turn()
        self._pace: dict[int, dict[str, float]] = {}
        self._hosts = Hosts(self._journal, start_step)
        self._mark = (time.monotonic(), start_step)

    def inputs(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields a run's batches, and measures how long each is waited for."""
        return self._laps.waiting(batches)

    def record(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step that led to `step`; logs the window before it if due."""
        self._log.add(step, metrics)
        if self._progress is not None:
            self._progress.advance(step)
        self._laps.lap(DEVICE)
        self._journal.advance(step)
        if self._plan.logs_at(step):
            self._hosts.see(step, metrics)
            spent = self._laps.turn()
            self._input.see(step, spent)
            self._pace[step] = {"images_per_second": self._rate(step)}
            self._pace[step] |= {TIME + kind: share for kind, share in shares(spent).items()}
            self._seconds += sum(spent.values())
            self._pace[step][SECONDS] = round(self._seconds, 3)
            if (row := self._log.turn()) is not None:
                self._write_train(*row)
            self._laps.lap(DEVICE, waited=True)
        self._callbacks.step(step, metrics)

    def _rate(self, step: int) -> float:
        """Returns images per second since the last call."""
        (then, before), self._mark = self._mark, (time.monotonic(), step)
        return (step - before) * self._plan.batch_size / max(self._mark[0] - then, 1e-9)

    def settle(self) -> Window:
        """Fetches all metrics so far, writes those that are due and returns the others.

        Raises UserError if one is not finite.
        """
        row, window = self._log.settle()
        if row is not None:
            self._write_train(*row)
        self._laps.lap(DEVICE, waited=True)
        self._hosts.settled()
        self._laps.lap(SAVE)
        self._journal.settle()
        return window

    def evaluated(self) -> None:
        """Counts the time since the last lap as evaluation."""
        self._laps.lap(EVALUATE)
        self._journal.settle()

    def written(self) -> None:
        """Counts the time since the last lap as saving: of an evaluation's weights and page."""
        self._laps.lap(SAVE)

    def saved_locally(self) -> None:
        """Counts a set on the hosts' own disks, and the time since the last lap as saving."""
        self._laps.lap(SAVE)
        self._journal.saved_locally()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of an evaluation that has just ended."""
        self.evaluated()
        self._write(step, numbers)
        self._callbacks.evaluation(step, numbers)

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.log(step, {"epoch": step / self._plan.steps_per_epoch, **numbers})

    def _write_train(self, step: int, means: Mapping[str, float]) -> None:
        numbers = {TRAIN + key: value for key, value in means.items()}
        if self._schedule is not None:
            numbers["lr"] = float(self._schedule(step - 1))
        numbers |= self._pace.pop(step, {})
        self._write(step, numbers)

    def close(self) -> None:
        """Closes the loggers, each of them if one fails."""
        self._hosts.close()
        with contextlib.ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close)

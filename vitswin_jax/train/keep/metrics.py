"""A run's metrics, from the device to the loggers, without making the device wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import optax

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.loggers import LOGGERS, TIME
from vitswin_jax.train.keep.timing import DEVICE, EVALUATE, InputWatch, Laps, shares
from vitswin_jax.train.run.plan import Plan

Item = TypeVar("Item")


class StepLog:
    """Gathers each step's metrics on the device and fetches them one window late.

    So the device never waits for the log. `settle` fetches everything, as before a save.
    """

    def __init__(self) -> None:
        self._window: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._closed: list[tuple[int, Mapping[str, jax.Array]]] = []

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of the step that led to `step`."""
        self._window.append((step, metrics))

    def turn(self) -> tuple[int, dict[str, float]] | None:
        """Closes the window; returns (last step, means) of the one before, None for the first."""
        row = self._fetch(self._closed)
        self._closed, self._window = self._window, []
        return row

    def settle(self) -> list[tuple[int, dict[str, float]]]:
        """Returns the rows of all that has not been fetched."""
        rows = [self._fetch(self._closed), self._fetch(self._window)]
        self._closed, self._window = [], []
        return [row for row in rows if row is not None]

    @staticmethod
    def _fetch(
        window: list[tuple[int, Mapping[str, jax.Array]]],
    ) -> tuple[int, dict[str, float]] | None:
        if not window:
            return None
        values = jax.device_get([metrics for _, metrics in window])
        for (step, _), metrics in zip(window, values, strict=True):
            bad = [key for key, value in metrics.items() if not np.isfinite(value)]
            if bad:
                names = ", ".join(f"{key} is {float(metrics[key])}" for key in bad)
                raise UserError(
                    f"{names} at step {step}; the run stops, and its last checkpoint is from "
                    "before. Try a lower optim.peak_lr, a longer warmup or optim.max_grad_norm."
                )
        means = {key: float(np.mean([row[key] for row in values])) for key in values[0]}
        return window[-1][0], means


class Recorder:
    """Gathers a run's metrics and gives them to its loggers, as often as the plan says."""

    def __init__(
        self, workdir: Path, plan: Plan, schedule: optax.Schedule, *, start_step: int
    ) -> None:
        self._plan, self._schedule = plan, schedule
        makers = LOGGERS if jax.process_index() == 0 else ()
        self._loggers = [make(workdir, plan, start_step=start_step) for make in makers]
        self._log = StepLog()
        self._laps, self._input = Laps(), InputWatch()
        self._pace: dict[int, dict[str, float]] = {}
        self._mark = (time.monotonic(), start_step)

    def inputs(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields a run's batches, and measures how long each is waited for."""
        return self._laps.waiting(batches)

    def record(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step that led to `step`; logs the window before it if due."""
        self._log.add(step, metrics)
        for logger in self._loggers:
            logger.advance(step)
        self._laps.lap(DEVICE)
        if self._plan.logs_at(step):
            spent = self._laps.turn()
            self._input.see(step, spent)
            self._pace[step] = {"images_per_second": self._rate(step)}
            self._pace[step] |= {TIME + kind: share for kind, share in shares(spent).items()}
            if (row := self._log.turn()) is not None:
                self._write_train(*row)
            self._laps.lap(DEVICE)

    def _rate(self, step: int) -> float:
        """Returns images per second since the last call."""
        (then, before), self._mark = self._mark, (time.monotonic(), step)
        return (step - before) * self._plan.batch_size / max(self._mark[0] - then, 1e-9)

    def settle(self) -> None:
        """Fetches and writes all metrics so far; raises UserError if one is not finite."""
        for row in self._log.settle():
            self._write_train(*row)
        self._laps.lap(DEVICE)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of an evaluation that has just ended."""
        self._laps.lap(EVALUATE)
        self._write(step, numbers)

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.write(step, {"epoch": step / self._plan.steps_per_epoch, **numbers})

    def _write_train(self, step: int, means: Mapping[str, float]) -> None:
        numbers = {f"train/{key}": value for key, value in means.items()}
        numbers["lr"] = float(self._schedule(step - 1))
        numbers |= self._pace.pop(step, {})
        self._write(step, numbers)

    def close(self) -> None:
        """Closes the loggers, each of them if one fails."""
        with contextlib.ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close)

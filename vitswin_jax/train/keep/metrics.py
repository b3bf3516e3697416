"""What a run tells while it runs: metrics.jsonl, TensorBoard events, a progress bar or lines."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from vitswin_jax.core.atomic import writing
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.timing import DEVICE, EVALUATE, InputWatch, Laps, shares
from vitswin_jax.train.keep.workdir import METRICS
from vitswin_jax.train.run.plan import Plan

Item = TypeVar("Item")

TIME = "time/"
"""How the names of shares of time begin."""


def read_until(path: Path, step: int) -> list[str]:
    """Returns the whole lines of a metrics file up to `step`: what a resumed run keeps."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the line that a killed process was writing
            break
        if row["step"] <= step:
            kept.append(line)
    return kept


class MetricWriter:
    """Appends rows of numbers to metrics.jsonl and to TensorBoard events; one host writes.

    Begins behind `start_step`: what an interrupted run wrote beyond the checkpoint it goes on from
    is dropped, and written again. Raises UserError where a file cannot be written: nothing is left
    to a thread, as tensorboardX's own writer does, which is not told of a full disk.
    """

    def __init__(self, workdir: Path, *, start_step: int) -> None:
        self._path = path = workdir / METRICS
        with writing(path):
            kept = read_until(path, start_step)
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in kept))
            part.replace(path)
            self._file = path.open("a", buffering=1)
            self._events = EventsWriter(str(workdir / "events"))
            begin = SessionLog(status=SessionLog.START)  # what other files have behind is hidden
            self._add_event(start_step + 1, session_log=begin)
            self._events.flush()

    def _add_event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Writes one row; numbers that are not finite become null, which JSON has."""
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            for key, value in row.items():
                self._add_event(step, summary=scalar(key, value))
            self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        with writing(self._path):
            self._file.close()
            self._events.close()


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


class Progress:
    """Shows how far a run is, images/s and time left: a bar on a terminal, else plain lines."""

    HEADLINE = ("train/loss", "test/accuracy")

    def __init__(
        self,
        *,
        step: int,
        total: int,
        batch_size: int,
        stream: io.TextIOBase = sys.stderr,
        show: bool,
    ) -> None:
        self._total, self._batch_size = total, batch_size
        self._stream, self._show = stream, show
        self._begin = self._mark = (time.monotonic(), step)
        self._bar = None
        self._headline: dict[str, float] = {}
        if show and stream.isatty():
            self._bar = tqdm(
                total=total * batch_size,
                initial=step * batch_size,
                unit="img",
                unit_scale=True,
                file=stream,
                dynamic_ncols=True,
            )

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step * self._batch_size - self._bar.n)

    def rate(self, step: int) -> float:
        """Returns images per second since the last call."""
        (then, before), self._mark = self._mark, (time.monotonic(), step)
        return (step - before) * self._batch_size / max(self._mark[0] - then, 1e-9)

    def say(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows a row as a line with the time left; behind a bar there is room for two numbers.

        Where the time went is for the files alone.
        """
        if self._bar is not None:
            self._headline |= {key: row[key] for key in self.HEADLINE if key in row}
            self._bar.set_postfix_str(_text(self._headline))
        elif self._show:
            (begin, first), now = self._begin, time.monotonic()
            left = (now - begin) / max(step - first, 1) * (self._total - step)
            eta = f"{int(left) // 60}:{int(left) % 60:02d} left"
            shown = {key: value for key, value in row.items() if not key.startswith(TIME)}
            line = f"step {step}/{self._total}  {_text(shown)}  {eta}"
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


def _text(row: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in row.items())


class Recorder:
    """Keeps a run's books: what each step measured, files and screen, on the plan's cadence."""

    def __init__(
        self, workdir: Path, plan: Plan, schedule: optax.Schedule, *, start_step: int
    ) -> None:
        self._plan, self._schedule = plan, schedule
        self._primary = jax.process_index() == 0
        self._writer = MetricWriter(workdir, start_step=start_step) if self._primary else None
        self._log = StepLog()
        self._laps, self._input = Laps(), InputWatch()
        self._pace: dict[int, dict[str, float]] = {}
        self._progress = Progress(
            step=start_step,
            total=plan.total_steps,
            batch_size=plan.batch_size,
            show=self._primary,
        )

    def inputs(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Gives a run's batches, and counts what they are waited for."""
        return self._laps.waiting(batches)

    def record(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step that led to `step`; logs the window before where due."""
        self._log.add(step, metrics)
        self._progress.advance(step)
        self._laps.lap(DEVICE)
        if self._plan.logs_at(step):
            spent = self._laps.turn()
            self._input.see(step, spent)
            self._pace[step] = {"images_per_second": self._progress.rate(step)}
            self._pace[step] |= {TIME + kind: share for kind, share in shares(spent).items()}
            if (row := self._log.turn()) is not None:
                self._write_train(*row)
            self._laps.lap(DEVICE)

    def settle(self) -> None:
        """Fetches and writes all metrics so far; raises UserError where one is not finite."""
        for row in self._log.settle():
            self._write_train(*row)
        self._laps.lap(DEVICE)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes what an evaluation that has just ended has measured."""
        self._laps.lap(EVALUATE)
        self._write(step, numbers)

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes a row of numbers to the files and shows it."""
        numbers = {"epoch": step / self._plan.steps_per_epoch, **numbers}
        if self._writer is not None:
            self._writer.write(step, numbers)
        self._progress.say(step, numbers)

    def _write_train(self, step: int, means: Mapping[str, float]) -> None:
        numbers = {f"train/{key}": value for key, value in means.items()}
        numbers["lr"] = float(self._schedule(step - 1))
        numbers |= self._pace.pop(step, {})
        self._write(step, numbers)

    def close(self) -> None:
        """Closes the files and the progress bar."""
        if self._writer is not None:
            self._writer.close()
        self._progress.close()

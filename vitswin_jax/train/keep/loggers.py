"""The loggers that each run has: metrics.jsonl, TensorBoard events, a progress bar or lines."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.rows import STEP, read_rows
from vitswin_jax.core.terminal import logger, progress, say
from vitswin_jax.train.run.plan import Plan
from vitswin_jax.weights.runs import METRICS

log = logger(__name__)

TIME = "time/"
"""The beginning of the names of shares of time."""
TRAIN = "train/"
"""The beginning of the names of training's means, which no evaluation has."""


def read_until(path: Path, step: int, *, tested: bool) -> list[str]:
    """Returns the rows of a metrics file up to `step` as written: what a resumed run keeps.

    An evaluation of `step` itself is kept if the checkpoint was `tested`; if not, the run evaluates
    it anew. Lines that are no rows of a run are left out; the whole file is then kept beside it.
    """
    rows = read_rows(path)
    if rows.foreign:
        names = (f"{path.name}.damaged-{number}" for number in itertools.count(1))
        aside = next(place for place in map(path.with_name, names) if not place.exists())
        shutil.copyfile(path, aside)
        many = f"{rows.foreign:,} lines are" if rows.foreign > 1 else "a line is"
        log.warning(
            "%s: %s no row of a run, and ignored; %s keeps the whole file.", path, many, aside.name
        )
    return [
        line
        for line, row in rows.lines
        if row[STEP] < step
        or (row[STEP] == step and (tested or any(key.startswith(TRAIN) for key in row)))
    ]


@runtime_checkable
class Logger(Protocol):
    """A destination of a run's numbers; only the first host has loggers."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of `step`, by name; those of training come one window late."""

    def close(self) -> None:
        """Ends the run's log."""


class Jsonl:
    """Appends rows to metrics.jsonl.

    A resumed run drops the rows after its checkpoint, of `start_step`, and writes them again; so it
    does with that step's evaluation, if the checkpoint was saved before it was `tested`. Raises
    UserError if the file cannot be written.
    """

    def __init__(self, workdir: Path, *, start_step: int, tested: bool) -> None:
        self._path = path = workdir / METRICS
        with writing(path):
            kept = read_until(path, start_step, tested=tested)
            with replacing(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            self._file = path.open("a", buffering=1, encoding="utf-8")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes one row; numbers that are not finite become null, which JSON has."""
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()


class TensorBoard:
    """Writes events for TensorBoard, which hides events of earlier files after `start_step`.

    tensorboardX's own writer leaves the file to a thread, and a full disk goes unnoticed there; so
    this one writes at once, and raises UserError if it cannot.
    """

    def __init__(self, workdir: Path, *, start_step: int) -> None:
        self._path = workdir / "events"
        with writing(self._path):
            self._events = EventsWriter(str(self._path))
            self._add(start_step + 1, session_log=SessionLog(status=SessionLog.START))
            self._events.flush()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes one event per number."""
        with writing(self._path):
            for key, value in numbers.items():
                self._add(step, summary=scalar(key, value))
            self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._events.close()


class Progress:
    """Shows how far a run is, images/s and time left: a bar on a terminal, else plain lines."""

    HEADLINE = ("train/loss", "test/accuracy")

    def __init__(self, plan: Plan, *, start_step: int, stream: Any = None) -> None:
        """Shows it on standard error if no `stream` is given."""
        stream = sys.stderr if stream is None else stream
        self._total, self._batch_size = plan.total_steps, plan.batch_size
        self._stream = stream
        self._begin = (time.monotonic(), start_step)
        self._bar = None
        self._headline: dict[str, float] = {}
        if stream.isatty():
            self._bar = progress(
                self._total * self._batch_size,
                initial=start_step * self._batch_size,
                unit="img",
                scale=True,
                stream=stream,
            )

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step * self._batch_size - self._bar.n)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows a row as a line with the time left; after a bar there is room for two numbers.

        Only the files get the shares of time.
        """
        if self._bar is not None:
            self._headline |= {key: numbers[key] for key in self.HEADLINE if key in numbers}
            self._bar.set_postfix_str(_text(self._headline))
        else:
            (begin, first), now = self._begin, time.monotonic()
            left = (now - begin) / max(step - first, 1) * (self._total - step)
            eta = f"{int(left) // 60}:{int(left) % 60:02d} left"
            shown = {key: number for key, number in numbers.items() if not key.startswith(TIME)}
            line = f"step {step}/{self._total}  {_text(shown)}  {eta}"
            say(line, stream=self._stream)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()


def _text(row: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in row.items())

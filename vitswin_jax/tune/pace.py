"""A run's pace, from its metrics.jsonl while it trains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitswin_jax.core.rows import STEP, read_rows
from vitswin_jax.report.runs import LOSS
from vitswin_jax.train.keep.metrics import SECONDS
from vitswin_jax.tune.clock import Costs

_TRAINING, _OTHERS = ("time/input", "time/device"), ("time/evaluate", "time/save")
_LEAST = 5  # windows, after the one that compiles, by which a pace is known


@dataclass(frozen=True)
class Pace:
    """Progress of a run, and its cost."""

    step: int
    seconds: float
    """From where this process began to train until `step`."""
    costs: Costs
    tested: bool
    """Whether an evaluation was measured; the first one compiles."""

    def seconds_to(self, total: int, every: int) -> float:
        """Returns how long a run takes to its last step, evaluations `every` steps included."""
        evaluations = math.ceil(total / every) - self.step // every
        return self.costs.step * (total - self.step) + self.costs.evaluation * evaluations


@dataclass(frozen=True)
class _Window:
    steps: int
    training: float
    others: float
    evaluations: int


def read_pace(path: Path, expected: Costs, *, start: int, prepared: float) -> Pace | None:
    """Returns the pace of a run that began at step `start`; None before it is known.

    `prepared` are the seconds from the trainer's call until it began to train.
    """
    rows = [row for _, row in read_rows(path).lines]
    before = max(
        (float(row[SECONDS]) for row in rows if row[STEP] <= start and SECONDS in row), default=0.0
    )
    timed = [row for row in rows if row[STEP] > start and row.get(SECONDS) is not None]
    tested = [row[STEP] for row in rows if row.get(LOSS) is not None]
    windows = _windows(timed, tested, start, before)
    if len(windows) <= _LEAST:
        return None
    first, *later = windows
    step = statistics.median(window.training / window.steps for window in later)
    evaluation = expected.evaluation
    if some := [w.others / w.evaluations for w in later if w.evaluations]:
        evaluation = statistics.median(some)
    compiling = max(0.0, first.training - step * first.steps)
    costs = Costs(step, evaluation, start=prepared + compiling)
    return Pace(timed[-1][STEP], float(timed[-1][SECONDS]) - before, costs, bool(some))


def _windows(
    timed: Sequence[Mapping[str, Any]], tested: Sequence[int], start: int, before: float
) -> list[_Window]:
    """Returns the windows between rows; an evaluation at a window's last step is in the next."""
    windows = []
    for row in timed:
        seconds = float(row[SECONDS]) - before
        training, others = (
            seconds * sum((float(row.get(key) or 0.0) for key in keys), 0.0)
            for keys in (_TRAINING, _OTHERS)
        )
        evaluations = sum(start <= step < row[STEP] for step in tested)
        windows.append(_Window(row[STEP] - start, training, others, evaluations))
        start, before = row[STEP], float(row[SECONDS])
    return windows

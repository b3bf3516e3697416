"""Runs read from their folders: numbers and configs, and two runs side by side."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from vitswin_jax.core.goodput import clock, read_goodput
from vitswin_jax.core.json import read_json
from vitswin_jax.core.rows import STEP, read_rows
from vitswin_jax.core.types import UserError
from vitswin_jax.report.curves import Series
from vitswin_jax.weights.runs import CONFIG
from vitswin_jax.weights.stored import local_numbers

SAME_SPLIT = ("data.dataset", "data.test_split", "data.holdout", "seed")
ACCURACY, LOSS = "test/accuracy", "test/loss"


@dataclass(frozen=True)
class Compared:
    """A run's results at the last step at which both were evaluated."""

    name: str
    started_from: str
    accuracy: float  # fraction in [0, 1]
    loss: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two runs in a report."""

    step: int | None
    """None where they were never evaluated at the same step."""
    runs: tuple[Compared, ...]
    accuracies: tuple[Series, Series]
    """Over steps, this run's first."""


def read_metrics(workdir: str | os.PathLike[str]) -> dict[str, Series]:
    """Returns the series of a run's metrics.jsonl, in the order of steps; {} where there is none.

    A run that was killed may have left half a line, and one that was resumed may have repeated
    steps, of which the last counts.
    """
    values: dict[str, dict[int, float]] = {}
    for _, row in read_rows(Path(workdir) / "metrics.jsonl").lines:
        for key, value in row.items():
            if key != STEP and value is not None:
                values.setdefault(key, {})[row[STEP]] = value
    ordered = {key: dict(sorted(series.items())) for key, series in values.items()}
    return {key: (tuple(series), tuple(series.values())) for key, series in ordered.items()}


def read_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a run's config.json; {} where there is none."""
    path = Path(workdir) / CONFIG
    return read_json(path, {"type": "object"}) if path.exists() else {}


def check_comparable(config: dict[str, Any], other: str | os.PathLike[str]) -> None:
    """Raises UserError unless a folder has a run that was evaluated on the same test split."""
    other, named = local_numbers(other), other
    if ACCURACY not in read_metrics(other):
        raise UserError(f"compare_to={named}: has no evaluations in a metrics.jsonl.")
    ours, theirs = (flatten_dict(c, sep=".") for c in (config, read_config(other)))
    wrong = [
        f"{key} is {theirs.get(key)!r} there and {ours[key]!r} here"
        for key in SAME_SPLIT
        if theirs.get(key) != ours[key]
    ]
    if wrong:
        raise UserError(
            f"compare_to={named}: was tested on other data, so results cannot be "
            f"compared: {'; '.join(wrong)}."
        )


def compare(workdir: str | os.PathLike[str], other: str | os.PathLike[str]) -> Comparison:
    """Compares the runs of two folders at the last step at which both were evaluated."""
    named, other = (workdir, other), local_numbers(other)
    series = [read_metrics(folder) for folder in (workdir, other)]
    values = [{key: dict(zip(*s[key], strict=True)) for key in (ACCURACY, LOSS)} for s in series]
    common = set(values[0][ACCURACY]) & set(values[1][ACCURACY])
    step = max(common, default=None)
    runs: tuple[Compared, ...] = ()
    if step is not None:
        runs = tuple(
            Compared(
                Path(name).name,
                read_config(folder).get("init_from") or "chance",
                numbers[ACCURACY][step],
                numbers[LOSS][step],
            )
            for name, folder, numbers in zip(named, (workdir, other), values, strict=True)
        )
    return Comparison(step, runs, (series[0][ACCURACY], series[1][ACCURACY]))


def pace(series: Mapping[str, Series], workdir: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Returns how long a run took, how fast it was and what for, by name; [] where no row says."""
    facts = []
    if "time/seconds" in series:
        facts.append(("duration", clock(series["time/seconds"][1][-1])))
    if "images_per_second" in series:
        rate = statistics.median(series["images_per_second"][1])
        facts.append(("speed", f"{rate:,.0f} images/s (median)"))
    if (goodput := read_goodput(Path(workdir))) is not None:
        facts.append(("goodput", str(goodput)))
    return facts

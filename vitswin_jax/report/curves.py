"""Curves over a run's training, and over those of many runs, as small drawings for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitswin_jax.report.figures import COLORS, plain, svg

Numbers = Sequence[int | float]
Series = tuple[Sequence[int], Numbers]
"""Steps and the values at them."""

EPOCH = "epoch"
"""The column of metrics.jsonl with the epochs at a row's step."""

_PANELS = (  # title, keys of metrics.jsonl, logarithmic
    ("Loss", ("train/loss", "test/loss"), False),
    ("Accuracy", ("train/accuracy", "test/accuracy"), False),
    ("Accuracy of probes", ("test/linear_accuracy", "test/knn_accuracy"), False),
    ("Learning rate", ("lr",), False),
    ("Gradient norm", ("train/grad_norm",), True),
)
_NEIGHBOURS = "test/knn_accuracy"
_PROBES = {"test/linear_accuracy": "linear", _NEIGHBOURS: "neighbours"}
_COMPARED = (  # title, key: what many runs are compared by
    ("Test accuracy", "test/accuracy"),
    ("Test loss", "test/loss"),
    ("Training loss", "train/loss"),
    ("Learning rate", "lr"),
)
_HOSTS = {
    "input": "Hosts: seconds a step for input",
    "device": "Hosts: seconds a step for devices",
    "save": "Hosts: seconds a step for saves",
}
_MANY = ("#e0561b", "#3b82c4", "#2f9e63", "#c026a3", "#b7791f", "#7c6ae0", "#0e9aa7", "#d6336c")
"""Colours of many curves, each to be seen on white and on black."""
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_POINTS = 1000  # a curve is thinned to so many: more do not show, and the page would grow


@dataclass(frozen=True)
class Panel:
    """One small drawing of a page: what it shows, and the drawing as a `data:` URI."""

    title: str
    uri: str


@dataclass(frozen=True)
class Line:
    """The style of a curve among many, on the page and in its legend."""

    color: str
    dash: str
    """Matplotlib's and, but for "dashdot", CSS's word for a style of lines."""


def curves(series: Mapping[str, Series]) -> list[Panel]:
    """Draws training and test curves over epochs, a panel each; [] where no metric was logged."""
    panels = []
    for title, keys, logarithmic in _PANELS:
        logged = [key for key in keys if key in series]
        if not logged:
            continue
        figure, axes = _panel(over_epochs := EPOCH in series)
        for key in logged:
            steps, values = (thin(numbers) for numbers in series[key])
            split = key.split("/")[0]
            marker = "." if len(steps) < 30 else None
            color = COLORS.get("other" if key == _NEIGHBOURS else split, COLORS["other"])
            x = epochs_at(steps, series) if over_epochs else steps
            axes.plot(x, values, color=color, marker=marker, lw=1.5, label=_PROBES.get(key, split))
        if logarithmic and any(value > 0 for key in logged for value in series[key][1]):
            axes.set_yscale("log", nonpositive="mask")
        if len(logged) > 1:
            axes.legend(frameon=False, fontsize=9)
        panels.append(Panel(title, svg(figure)))
    return panels


def epochs_at(steps: Numbers, series: Mapping[str, Series]) -> list[float]:
    """Returns the epochs at steps, from a run's own `epoch` column, which is never empty."""
    return np.interp(steps, *series[EPOCH]).tolist()


def many_runs(runs: Sequence[Mapping[str, Series]]) -> list[Panel]:
    """Draws the curves of runs over one another, each with its `line_of`; [] where none has any."""
    panels = []
    for title, key in _COMPARED:
        drawn = [(i, run) for i, run in enumerate(runs) if key in run and EPOCH in run]
        if not drawn:
            continue
        figure, axes = _panel(over_epochs=True)
        for i, run in drawn:
            steps, values = (thin(numbers) for numbers in run[key])
            line = line_of(i)
            marker = "." if len(steps) < 30 else None
            style: dict[str, Any] = {"color": line.color, "ls": line.dash, "marker": marker}
            axes.plot(epochs_at(steps, run), values, lw=1.5, **style)
        panels.append(Panel(title, svg(figure)))
    return panels


def line_of(index: int) -> Line:
    """Returns how the curve of run `index` is drawn: the colours first, then other dashes."""
    dash = _DASHES[index // len(_MANY) % len(_DASHES)]
    return Line(_MANY[index % len(_MANY)], dash)


def _panel(over_epochs: bool) -> tuple[Figure, Axes]:
    """Returns an empty drawing that a phone shows without scaling it down."""
    figure = Figure(figsize=(3.9, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("epoch" if over_epochs else "step", fontsize=9)
    plain(axes)
    return figure, axes


def hosts(work: Mapping[int, Mapping[str, Sequence[tuple[int, float]]]]) -> list[Panel]:
    """Draws where the time of each host of a run went, by kind; [] for a run of one host.

    `work` is what `core.goodput.read_hosts` returns. The hosts that differ most have colours.
    """
    panels = []
    for kind, title in _HOSTS.items():
        seconds_of = {host: [y for _, y in kinds[kind]] for host, kinds in work.items()}
        means = {host: float(np.mean(each)) for host, each in seconds_of.items() if each}
        if not means:
            continue
        middle = float(np.median(list(means.values())))
        named = sorted(means, key=lambda host: -abs(means[host] - middle))[: len(_MANY)]
        figure, axes = _panel(over_epochs=False)
        for host in sorted(means, key=lambda host: host in named):
            steps, seconds = zip(*work[host][kind], strict=True)
            color = _MANY[sorted(named).index(host)] if host in named else COLORS["other"]
            label = f"host {host}" if host in named else None
            axes.plot(steps, seconds, color=color, lw=1.2, label=label)
        axes.legend(frameon=False, fontsize=8)
        panels.append(Panel(title, svg(figure)))
    return panels


def two_runs(ours: Series, theirs: Series) -> str:
    """Draws the test accuracy of this run and of another over their steps."""
    figure = Figure(figsize=(5, 2.7), layout="constrained")
    axes = figure.subplots()
    for (steps, values), color, label in (
        (theirs, COLORS["train"], "the other"),
        (ours, COLORS["test"], "this run"),
    ):
        axes.plot(thin(steps), thin(values), color=color, marker=".", lw=1.5, label=label)
    axes.set(xlabel="step", ylabel="test accuracy")
    axes.legend(frameon=False, fontsize=8)
    plain(axes)
    return svg(figure)


def thin(numbers: Numbers) -> Numbers:
    """Returns every n-th of the numbers and always the last, about `_POINTS` in all."""
    stride = math.ceil(len(numbers) / _POINTS)
    return list(numbers[::-stride])[::-1] if stride > 1 else numbers

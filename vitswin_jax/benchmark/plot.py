"""A benchmark's rounds, drawn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vitswin_jax.core.atomic import replacing


def save_plot(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draws a panel a result: every contestant's rounds as points, and their median; a PNG."""
    counts = [len(result["contestants"]) for result in results]
    figure = Figure(figsize=(8, sum(0.9 + 0.25 * count for count in counts)), layout="constrained")
    panels = figure.subplots(
        len(results), squeeze=False, height_ratios=[2 + count for count in counts]
    )
    for axes, result in zip(panels[:, 0], results, strict=True):
        for place, one in enumerate(result["contestants"].values()):
            times = [1e3 * seconds for seconds in one["wall"]]
            axes.plot(times, [place] * len(times), ".", color=f"C{place}", alpha=0.5)
            axes.plot(statistics.median(times), place, "|", color=f"C{place}", markersize=14)
        axes.set_title(result["title"], fontsize=9, loc="left")
        axes.set_yticks(range(len(result["contestants"])), list(result["contestants"]), fontsize=8)
        axes.set_ylim(len(result["contestants"]) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
    panels[-1, 0].set_xlabel("ms a call")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)

"""Parts of the pictures: colours, the photograph, frames side by side, matrices."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

INK, BLUE, ORANGE = "#222222", "#1f6fb2", "#d9822b"
FOUR = ("#4c9bd6", "#e8a03c", "#6cb56c", "#c86b98")
SIDE = 224  # of the photograph, in pixels


def photo() -> np.ndarray:
    """Returns scikit-learn's flower, uint8 (224, 224, 3)."""
    whole = Image.fromarray(load_sample_image("flower.jpg")).crop((120, 0, 547, 427))
    return np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def panels(*titles: str, height: float = 2.6, widths: tuple[float, ...] | None = None) -> Figure:
    """Returns a figure with one frame a title, side by side."""
    ratios = widths or (1.0,) * len(titles)
    figure, axes = plt.subplots(
        1,
        len(titles),
        figsize=(height * sum(ratios), height + 0.35),
        width_ratios=ratios,
        layout="constrained",
    )
    for axis, title in zip(np.atleast_1d(axes), titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def grid(axis: Axes, size: int, step: int, *, first: int = 0, color: str = "white") -> None:
    """Draws the lines of a grid on a picture of `size` pixels a side."""
    for at in range(first or step, size, step):
        axis.axhline(at - 0.5, color=color, lw=1.3)
        axis.axvline(at - 0.5, color=color, lw=1.3)


def matrix(axis: Axes, values: np.ndarray, *, numbers: str = "", size: float = 8) -> None:
    """Shows a matrix as colours around zero, with its numbers in the format of `numbers`."""
    limit = np.abs(values).max()
    axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.7 * limit else INK
            axis.text(
                column, row, format(value, numbers),
                ha="center", va="center", fontsize=size, color=color,
            )  # fmt: skip

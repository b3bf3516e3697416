"""Windows, their shift and masks, relative positions, merging, Swin V2's offsets."""

from __future__ import annotations

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from panels import BLUE, FOUR, INK, ORANGE, SIDE, grid, matrix, panels, photo

from vitswin_jax.models.stages import concatenate_neighbors
from vitswin_jax.nn.relative import log_spaced_coordinates
from vitswin_jax.nn.windows import (
    relative_position_index,
    roll,
    shifted_window_mask,
    window_partition,
)


def windows() -> Figure:
    """Windows, shifted windows, and the roll that makes them whole, on the photograph."""
    image, side, shift = photo(), 56, 28
    rolled = np.asarray(roll(jnp.asarray(image, jnp.float32)[None], (-shift, -shift)))[0]
    figure = panels("W-MSA", "SW-MSA", "roll(x, (-s, -s))", "window_partition")
    for axis in figure.axes[:2]:
        axis.imshow(image)
    grid(figure.axes[0], SIDE, side)
    grid(figure.axes[1], SIDE, side, first=shift)
    figure.axes[2].imshow(rolled.astype(np.uint8))
    grid(figure.axes[2], SIDE, side)
    for draw in (figure.axes[2].axhline, figure.axes[2].axvline):
        draw(SIDE - shift - 0.5, color=ORANGE, lw=2, ls="--")
    cut = np.asarray(window_partition(jnp.asarray(rolled)[None], (side, side)))[0]
    gap = 8
    sheet = np.full((4 * (side + gap), 4 * (side + gap), 3), 255, np.uint8)
    for i, window in enumerate(cut):
        y, x = (gap // 2 + (side + gap) * at for at in divmod(i, 4))
        sheet[y : y + side, x : x + side] = window.reshape(side, side, 3)
    figure.axes[3].imshow(sheet)
    figure.axes[3].axis("off")
    return figure


def mask() -> Figure:
    """The regions of a rolled map, and the masks of its four windows."""
    height, window, shift = 8, (4, 4), (2, 2)
    allowed = shifted_window_mask((height, height), window_size=window, shift=shift)
    region = np.add.outer(2 * (np.arange(8) >= 6), np.arange(8) >= 6)
    figure = panels("8×8, M=4, s=2", *(f"mask[{i}]  16×16" for i in range(4)), height=2.1)
    colors = mpl.colors.ListedColormap(FOUR)
    figure.axes[0].imshow(region, cmap=colors, vmin=0, vmax=3)
    figure.axes[0].axhline(3.5, color="white", lw=3)
    figure.axes[0].axvline(3.5, color="white", lw=3)
    for axis, one in zip(figure.axes[1:], allowed, strict=True):
        axis.imshow(one, cmap=mpl.colors.ListedColormap(("#d5d5d5", BLUE)), vmin=0, vmax=1)
    return figure


def relative_index() -> Figure:
    """The row of the bias table for each pair of a 3×3 window, and a table laid out by offset."""
    index = relative_position_index((3, 3))
    rng = np.random.default_rng(0)
    table = rng.normal(size=25)
    figure = panels(
        "relative_position_index  9×9", r"$\hat B\ (5, 5)$", r"$B=\hat B[\mathrm{index}]$",
        height=3.0,
    )  # fmt: skip
    figure.axes[0].imshow(index, cmap="viridis")
    for (row, column), value in np.ndenumerate(index):
        figure.axes[0].text(
            column, row, value, ha="center", va="center", fontsize=7.5,
            color="white" if value < 15 else INK,
        )  # fmt: skip
    matrix(figure.axes[1], table.reshape(5, 5), numbers="+.1f", size=8)
    for (row, column), value in np.ndenumerate(np.arange(25).reshape(5, 5)):
        dark = abs(table[value]) > 0.7 * np.abs(table).max()
        figure.axes[1].text(
            column - 0.45, row - 0.28, value, fontsize=6, color="white" if dark else INK
        )
    matrix(figure.axes[2], table[index])
    return figure


def merging() -> Figure:
    """Four neighbours become the channels of one token, in the order of the weights."""
    numbers = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    merged = np.asarray(concatenate_neighbors(jnp.asarray(numbers)))[0]
    figure = panels("(4, 4, c)", "(2, 2, 4c)", "reduction: (2, 2, 2c)", widths=(1, 1.7, 1))
    place = np.add.outer(2 * (np.arange(4) % 2), np.arange(4) % 2)
    figure.axes[0].imshow(place, cmap=mpl.colors.ListedColormap(FOUR))
    for (row, column), value in np.ndenumerate(numbers[0, ..., 0]):
        figure.axes[0].text(column, row, int(value), ha="center", va="center", color="white")
    grid(figure.axes[0], 4, 2, color=INK)
    for axis, parts in ((figure.axes[1], 4), (figure.axes[2], 2)):
        axis.set_xlim(-0.1, 2 * parts + 0.4)
        axis.set_ylim(2.6, -0.4)
        axis.axis("off")
        axis.set_title(axis.get_title(), fontsize=10, color=INK)
        for row, column in np.ndindex(2, 2):
            x, y = column * (parts + 0.3), row * 1.3
            for i in range(parts):
                value = int(merged[row, column, i])
                color = FOUR[place[divmod(value, 4)]] if parts == 4 else BLUE
                axis.add_patch(Rectangle((x + i, y), 1, 1, fc=color, ec="white"))
                if parts == 4:
                    axis.text(x + i + 0.5, y + 0.5, value, color="white", ha="center", va="center")
        axis.set_aspect("equal")
    return figure


def log_offsets() -> Figure:
    """Swin V2's log-spaced offsets of windows of 8 and of 16, trained at 8."""
    figure, axis = plt.subplots(figsize=(4.6, 2.9), layout="constrained")
    for side, color, width in ((16, ORANGE, 1.3), (8, BLUE, 4)):
        offsets = np.arange(1 - side, side)
        spaced = log_spaced_coordinates((side, side), (8, 8)).reshape(2 * side - 1, -1, 2)
        axis.plot(
            offsets, spaced[:, 0, 0], "o-", ms=3, lw=width, alpha=0.7, color=color,
            label=f"M={side}",
        )  # fmt: skip
    axis.plot(offsets := np.arange(-15, 16), offsets / 7, ":", color=INK, label=r"$\Delta y/7$")
    axis.set_xlabel(r"$\Delta y$")
    axis.set_ylabel(r"$\widehat{\Delta y}$")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure

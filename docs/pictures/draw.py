"""Draws the pictures of concepts.md from arrays of the code itself: python docs/pictures/draw.py.

Writes them beside itself, or into the folder that is given. There are no words in them, only the
names of the code and the papers' letters, so that they serve every language.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image

from vitswin_jax.analysis.cost import describe
from vitswin_jax.models.attention import SelfAttention
from vitswin_jax.models.registry import create_model
from vitswin_jax.models.stages import concatenate_neighbors
from vitswin_jax.models.swinv2 import log_spaced_coordinates
from vitswin_jax.models.windows import (
    relative_position_index,
    roll,
    shifted_window_mask,
    window_partition,
)

INK, BLUE, ORANGE = "#222222", "#1f6fb2", "#d9822b"
FOUR = ("#4c9bd6", "#e8a03c", "#6cb56c", "#c86b98")
STYLE = {"figure.dpi": 110}
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


def attention() -> Figure:
    """Softmax of q·k for six tokens, two heads of four channels: each head its own weights."""
    x = jax.random.normal(jax.random.key(2), (1, 6, 8))
    module = SelfAttention(num_heads=2, kernel_init=jax.nn.initializers.normal(0.8))
    variables = module.init(jax.random.key(1), x, train=False)
    out, left = module.apply(variables, x, train=False, mutable=["intermediates"])
    weights = left["intermediates"]["attention"][0][0]  # (heads, n, n)
    kernel = variables["params"]["qkv"]["kernel"]
    q, k, v = jnp.einsum("nc,cthd->thnd", x[0], kernel)
    figure = panels(
        r"$X\ (n, c)$",
        r"$Q_1, Q_2$",
        r"$K_1, K_2$",
        r"$A_1$",
        r"$A_2$",
        r"$V_1, V_2$",
        r"$\mathrm{MSA}(X)$",
        height=1.9,
    )
    heads = [np.concatenate(list(part), axis=1) for part in (q, k, v)]
    shown = (x[0], heads[0], heads[1], weights[0], weights[1], heads[2], out[0])
    for i, (axis, values) in enumerate(zip(figure.axes, shown, strict=True)):
        if i in (3, 4):
            axis.imshow(values, cmap="Blues", vmin=0, vmax=1)
            continue
        matrix(axis, np.asarray(values))
        if i in (1, 2, 5):
            axis.axvline(3.5, color=INK, lw=2)
    return figure


def permutation() -> Figure:
    """Attention of permuted tokens is permuted attention, until each place has an embedding."""
    x = jax.random.normal(jax.random.key(0), (1, 8, 8))
    places = jax.random.normal(jax.random.key(3), (1, 8, 8))
    order = np.array([3, 0, 6, 1, 7, 4, 2, 5])
    module = SelfAttention(num_heads=2)
    variables = module.init(jax.random.key(1), x, train=False)

    def attend(tokens: jax.Array) -> np.ndarray:
        return np.asarray(module.apply(variables, tokens, train=False)[0])

    without = attend(x[:, order]) - attend(x)[order]
    within = attend(x[:, order] + places) - attend(x + places)[order]
    figure = panels(
        r"$X$", r"$PX$", r"$f(X)$", r"$f(PX)$", r"$f(PX)-Pf(X)$", r"$f(PX{+}E)-Pf(X{+}E)$",
        height=2.0,
    )  # fmt: skip
    limit = float(np.abs(within).max())
    shown = (x[0], x[0, order], attend(x), attend(x[:, order]), without, within)
    for axis, values in zip(figure.axes, shown, strict=True):
        difference = axis in figure.axes[-2:]
        bound = limit if difference else float(np.abs(values).max())
        axis.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound)
    return figure


def patches() -> Figure:
    """A photograph, its patches of 16 pixels, and the sequence of them behind the class token."""
    image = photo()
    cut = np.asarray(window_partition(jnp.asarray(image, jnp.float32)[None], (16, 16)))[0]
    figure = panels(
        r"$x\ (224, 224, 3)$",
        r"$14 \times 14$ patches",
        r"$z_0\ (1{+}196, 768)$",
        widths=(1, 1, 2.6),
    )
    figure.axes[0].imshow(image)
    figure.axes[1].imshow(image)
    grid(figure.axes[1], SIDE, 16)
    row, last = figure.axes[2], 8
    row.set_xlim(-1.5, last + 3.5)
    row.set_ylim(2.4, -1.6)
    row.add_patch(Rectangle((-1.4, -0.4), 0.8, 0.8, color=ORANGE))
    row.text(-1, 1.0, "cls_token", ha="center", fontsize=8)
    for i in range(last):
        tile = cut[90 + i].reshape(16, 16, 3).astype(np.uint8)
        row.imshow(tile, extent=(i - 0.4, i + 0.4, 0.4, -0.4))
        row.text(i, 1.0, f"$x_{{{91 + i}}}$", ha="center", fontsize=9)
    row.text(last + 0.3, 0.1, r"$\cdots\ x_{196}$", fontsize=11)
    row.text(3.5, 1.9, r"$+\ E_{pos}$  (pos_embed)", ha="center", fontsize=10, color=BLUE)
    row.set_aspect("equal")
    row.axis("off")
    row.set_title(r"$z_0\ (1{+}196, 768)$", fontsize=10, color=INK)
    return figure


def pipelines() -> Figure:
    """The ways of an image through a ViT, a hybrid and a Swin, by their shapes."""
    rows = {
        "vit_base_patch16_224": [
            ("images", "224·224·3"), ("patch_embed", "14·14·768"), ("cls, pos", "197·768"),
            ("block ×12", "197·768"), ("norm, [0]", "768"), ("head", "1000"),
        ],
        "vit_base_r50_s16_224": [
            ("images", "224·224·3"), ("backbone", "14·14·1024"), ("patch_embed 1×1", "14·14·768"),
            ("cls, pos", "197·768"), ("block ×12", "197·768"), ("head", "1000"),
        ],
        "swin_tiny_patch4_window7_224": [
            ("patch_embed", "56·56·96"), ("stage_0 ×2", "56·56·96"), ("stage_1 ×2", "28·28·192"),
            ("stage_2 ×6", "14·14·384"), ("stage_3 ×2", "7·7·768"), ("mean, head", "1000"),
        ],
    }  # fmt: skip
    figure, axis = plt.subplots(figsize=(9.6, 3.6), layout="constrained")
    axis.set_xlim(-0.1, 12)
    axis.set_ylim(6.2, -0.9)
    axis.axis("off")
    for line, (name, boxes) in enumerate(rows.items()):
        top = 2.2 * line
        axis.text(0, top - 0.25, name, fontsize=9, color=BLUE, family="monospace")
        for i, (what, shape) in enumerate(boxes):
            axis.add_patch(Rectangle((2 * i, top), 1.65, 1.2, fc="#eef4fa", ec=BLUE))
            axis.text(2 * i + 0.82, top + 0.42, what, ha="center", va="center", fontsize=8.5)
            axis.text(2 * i + 0.82, top + 0.86, shape, ha="center", va="center", fontsize=8.5)
            if i:
                axis.annotate("", (2 * i, top + 0.6), (2 * i - 0.35, top + 0.6),
                              arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    return figure


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
    """Which tokens of a rolled map belong together, and the masks of its four windows."""
    height, window, shift = 8, (4, 4), (2, 2)
    allowed = shifted_window_mask(height, height, window_size=window, shift=shift)
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


def cost() -> Figure:
    """Multiply-adds against image size, counted from the traced programs."""
    figure, axis = plt.subplots(figsize=(5.2, 3.3), layout="constrained")
    for name, step, color in (
        ("vit_base_patch16_224", 112, ORANGE),
        ("swin_base_patch4_window7_224", 224, BLUE),
    ):
        sides = range(224, 1121, step)
        counts = [describe(create_model(name, img_size=s, scan=True)).multiply_adds for s in sides]
        axis.plot(sides, np.array(counts) / 1e9, "o-", ms=4, color=color, label=name)
    axis.set_xlabel("img_size")
    axis.set_ylabel(r"$10^9$ multiply-adds")
    axis.set_ylim(0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw
    for draw in (
        attention, permutation, patches, pipelines, windows, mask, relative_index, merging,
        log_offsets, cost,
    )
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Draws a picture of `PICTURES`; returns the path of its PNG, of at most 128 colours."""
    figure = PICTURES[name]()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    path = folder / f"{name}.png"
    Image.fromarray(pixels).quantize(128).save(path, optimize=True)
    return path


def main(arguments: list[str]) -> None:
    """Draws all pictures."""
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    for name in PICTURES:
        path = write(name, folder)
        print(f"{path.name}  {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

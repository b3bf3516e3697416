"""The report's figures, as `data:` URIs: SVG drawings by Matplotlib and PNG pictures; or as files.

Pages set the texts that a user chose, in whatever script they are written; a picture that is a file
draws them by `fonts`.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from PIL import Image

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.terminal import printable
from vitswin_jax.evaluate.evaluation import CalibrationBin
from vitswin_jax.report import fonts

NAMED = 30
"""Classes at most of which a confusion matrix shows names and counts."""
_NAME = 24  # characters of a name
COLORS = {"train": "#829ab1", "test": "#e0561b", "other": "#4f7cac"}
_INK = "#1f2933"
"""The colour of letters and axes, which a page's dark mode replaces."""
_INKS = f":root{{--ink:{_INK}}}@media (prefers-color-scheme:dark){{:root{{--ink:#d9e2ec}}}}"
_WIDTH = 11.3  # inches: the page's


def reliability(bins: Sequence[CalibrationBin]) -> str:
    """Draws `draw_reliability` for a page."""
    return svg(draw_reliability(bins))


def draw_reliability(bins: Sequence[CalibrationBin]) -> Figure:
    """Draws accuracy over confidence; a calibrated model's bars end on the diagonal."""
    figure = Figure(figsize=(3.4, 3.2), layout="constrained")
    axes = figure.subplots()
    filled = [b for b in bins if b.examples]
    axes.bar(
        [b.low for b in filled],
        [b.accuracy for b in filled],
        width=[b.high - b.low for b in filled],
        align="edge",
        color=COLORS["other"],
        edgecolor="white",
    )
    axes.plot([0, 1], [0, 1], color=COLORS["test"], lw=1, ls="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    plain(axes)
    return figure


def confusion(matrix: Int[np.ndarray, "k k"]) -> str:
    """Draws `draw_confusion` for a page, which has the names in a table."""
    return svg(draw_confusion(matrix))


def draw_confusion(matrix: Int[np.ndarray, "k k"], names: Sequence[str] = ()) -> Figure:
    """Draws a confusion matrix; each true class's row sums to 1 in its colours.

    With `names` of at most `NAMED` classes, rows and columns have them and cells their counts.
    """
    named = 0 < len(names) <= NAMED
    side = max(5.4, 0.42 * len(names)) if named else 5.4
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    scale = PowerNorm(0.5, vmin=0, vmax=1)  # so that a few errors among many show
    image = axes.imshow(share, cmap="Blues", norm=scale, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, shrink=0.8)
    plain(axes)
    if named:
        _add_names(axes, names)
        for (i, j), count in np.ndenumerate(matrix):
            if count:
                ink = "white" if scale(share[i, j]) > 0.6 else _INK
                axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7, color=ink)
    return figure


def _add_names(axes: Axes, names: Sequence[str]) -> None:
    """Writes the names of classes at the rows and columns of a matrix, in fonts that have them."""
    shown = [shortened(printable(name), _NAME) for name in names]
    places = np.arange(len(shown))
    axes.set_xticks(places, [fonts.drawable(name) for name in shown], rotation=90)
    axes.set_yticks(places, [fonts.drawable(name) for name in shown])
    for label, name in zip((*axes.get_xticklabels(), *axes.get_yticklabels()), 2 * shown,
                           strict=True):  # fmt: skip
        label.set_fontproperties(FontProperties(fname=fonts.font_of(name), size=8))
        label.set_parse_math(False)  # a name may have a dollar sign


def shortened(text: str, most: int) -> str:
    """Returns a text of at most `most` characters; a longer one ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def write_png(path: str | os.PathLike[str], figure: Figure) -> Path:
    """Writes a figure as a PNG; returns `path`. Raises UserError where it cannot be written."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)


def position_similarity(embedding: Float[np.ndarray, "h w c"]) -> str:
    """Draws `draw_position_similarity` as SVG."""
    return svg(draw_position_similarity(embedding))


def draw_position_similarity(embedding: Float[np.ndarray, "h w c"]) -> Figure:
    """Draws cosine similarities of position embeddings, a map per position (ViT, fig. 7 centre)."""
    maps, rows, columns = cosine_similarities(embedding, at_most=16)
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mosaic(maps), cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xlabel="patch column", ylabel="patch row")
    cell_ticks(axes, maps.shape, rows=rows + 1, columns=columns + 1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine similarity")
    return figure


def cosine_similarities(
    embedding: Float[np.ndarray, "h w c"], *, at_most: int
) -> tuple[Float[np.ndarray, "i j h w"], Int[np.ndarray, " i"], Int[np.ndarray, " j"]]:
    """Returns the similarity of the embeddings at some rows i and columns j to all, and i and j.

    Of a grid larger than `at_most` a side, evenly spaced positions are taken.
    """
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), 1e-12)
    rows, columns = (
        np.linspace(0, side - 1, min(side, at_most)).round().astype(int)
        for side in embedding.shape[:2]
    )
    return np.einsum("ijc,hwc->ijhw", unit[np.ix_(rows, columns)], unit), rows, columns


def bias_maps(maps: Float[np.ndarray, "blocks heads h w"]) -> str:
    """Draws `draw_bias_maps` as SVG."""
    return svg(draw_bias_maps(maps))


def draw_bias_maps(maps: Float[np.ndarray, "blocks heads h w"]) -> Figure:
    """Draws relative position biases of a Swin stage: a row per block, a map per head.

    The centre of a map is a query's own place; each block has its own scale, white at zero.
    """
    blocks, heads = maps.shape[:2]
    scale = np.abs(maps).max(axis=(1, 2, 3), keepdims=True)
    side = min(0.9, (_WIDTH - 1) / heads)
    figure = Figure(figsize=(1 + side * heads, 0.6 + side * blocks), layout="constrained")
    axes = figure.subplots()
    relative = mosaic(maps / np.maximum(scale, 1e-12))
    axes.imshow(relative, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xlabel="head", ylabel="block")
    cell_ticks(axes, maps.shape, rows=np.arange(blocks), columns=np.arange(heads))
    return figure


def mosaic(maps: Float[np.ndarray, "i j h w"]) -> Float[np.ndarray, "rows columns"]:
    """Lays maps out as a picture, with an empty (NaN) line between neighbours."""
    padded = np.pad(maps, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return rearrange(padded, "i j h w -> (i h) (j w)")[:-1, :-1]


def picture(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Returns an image as a PNG's `data:` URI."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return png_uri(data.getvalue())


def png_uri(data: bytes) -> str:
    """Returns the `data:` URI of a PNG."""
    return _uri("image/png", data)


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


def cell_ticks(
    axes: Axes, shape: tuple[int, ...], *, rows: np.ndarray, columns: np.ndarray
) -> None:
    """Labels the rows and columns of a `mosaic` of maps of this shape, (i, j, h, w)."""
    _, _, h, w = shape
    for labels, side, place in ((rows, h, axes.set_yticks), (columns, w, axes.set_xticks)):
        place(np.arange(len(labels)) * (side + 1) + (side - 1) / 2, labels)
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)


def plain(axes: Axes) -> None:
    """Takes the frame off a drawing and writes its numbers small."""
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> str:
    """Returns a figure without a ground, whose letters and axes are light in dark mode."""
    _ink(figure)
    data = io.StringIO()
    # No date and fixed ids: the same run gives the same figure.
    with matplotlib.rc_context({"svg.hashsalt": "vitswin_jax"}):
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    text = data.getvalue().replace(f": {_INK}", ": var(--ink)")
    text = text.replace("<defs>", f"<defs>\n  <style>{_INKS}</style>", 1)
    return _uri("image/svg+xml", text.encode())


def _ink(figure: Figure) -> None:
    """Gives letters and axes the one colour that dark mode replaces."""
    for text in figure.findobj(Text):
        text.set_color(_INK)
    for axes in figure.axes:
        axes.tick_params(which="both", color=_INK, labelcolor=_INK)
        axes.spines[:].set_edgecolor(_INK)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

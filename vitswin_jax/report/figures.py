"""The report's figures, as `data:` URIs: SVG drawings by Matplotlib and PNG pictures; or as files.

No text that a user chose is drawn here: the page sets it, in whatever script it is written.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from vitswin_jax.core.atomic import replacing
from vitswin_jax.evaluate.evaluation import CalibrationBin

Numbers = Sequence[int | float]
Series = tuple[Sequence[int], Numbers]
"""Steps and the values at them."""

_PANELS = (  # title, keys of metrics.jsonl, logarithmic
    ("Loss", ("train/loss", "test/loss"), False),
    ("Accuracy", ("train/accuracy", "test/accuracy"), False),
    ("Accuracy of probes", ("test/linear_accuracy", "test/knn_accuracy"), False),
    ("Learning rate", ("lr",), False),
    ("Gradient norm", ("grad_norm",), True),
)
_NEIGHBOURS = "test/knn_accuracy"
_PROBES = {"test/linear_accuracy": "linear", _NEIGHBOURS: "neighbours"}
_COLORS = {"train": "#9aa5b1", "test": "#c2410c", "other": "#334e68"}
_WIDTH = 11.3  # inches: the page's
_POINTS = 1000  # a curve is thinned to so many: more do not show, and the page would grow


def curves(series: Mapping[str, Series]) -> str | None:
    """Draws training and test curves over steps; None where no known metric was logged."""
    panels = [
        (title, [key for key in keys if key in series], logarithmic)
        for title, keys, logarithmic in _PANELS
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    figure = Figure(figsize=(min(_WIDTH, 5 * len(panels)), 2.7), layout="constrained")
    for axes, (title, keys, logarithmic) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for key in keys:
            steps, values = (thin(numbers) for numbers in series[key])
            split = key.split("/")[0]
            marker = "." if len(steps) < 30 else None
            color = _COLORS.get("other" if key == _NEIGHBOURS else split, _COLORS["other"])
            label = _PROBES.get(key, split)
            axes.plot(steps, values, color=color, marker=marker, lw=1.5, label=label)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        if logarithmic and any(value > 0 for key in keys for value in series[key][1]):
            axes.set_yscale("log", nonpositive="mask")
        if len(keys) > 1:
            axes.legend(frameon=False, fontsize=8)
        _plain(axes)
    return _svg(figure)


def two_runs(ours: Series, theirs: Series) -> str:
    """Draws the test accuracy of this run and of another over their steps."""
    figure = Figure(figsize=(5, 2.7), layout="constrained")
    axes = figure.subplots()
    for (steps, values), color, label in (
        (theirs, _COLORS["train"], "the other"),
        (ours, _COLORS["test"], "this run"),
    ):
        axes.plot(thin(steps), thin(values), color=color, marker=".", lw=1.5, label=label)
    axes.set(xlabel="step", ylabel="test accuracy")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    return _svg(figure)


def thin(numbers: Numbers) -> Numbers:
    """Returns every n-th of the numbers and always the last, about `_POINTS` in all."""
    stride = math.ceil(len(numbers) / _POINTS)
    return list(numbers[::-stride])[::-1] if stride > 1 else numbers


def reliability(bins: Sequence[CalibrationBin]) -> str:
    """Draws `draw_reliability` for a page."""
    return _svg(draw_reliability(bins))


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
        color=_COLORS["other"],
        edgecolor="white",
    )
    axes.plot([0, 1], [0, 1], color=_COLORS["test"], lw=1, ls="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    _plain(axes)
    return figure


def confusion(matrix: Int[np.ndarray, "k k"]) -> str:
    """Draws `draw_confusion` for a page."""
    return _svg(draw_confusion(matrix))


def draw_confusion(matrix: Int[np.ndarray, "k k"]) -> Figure:
    """Draws a confusion matrix that is too large for a table; each true class's row sums to 1."""
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    scale = PowerNorm(0.5, vmin=0, vmax=1)  # so that a few errors among many show
    image = axes.imshow(share, cmap="Blues", norm=scale, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, ax=axes, shrink=0.8)
    _plain(axes)
    return figure


def write_png(path: str | os.PathLike[str], figure: Figure) -> Path:
    """Writes a figure as a PNG; returns `path`. Raises UserError where it cannot be written."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)


def position_similarity(embedding: Float[np.ndarray, "h w c"]) -> str:
    """Draws `draw_position_similarity` as SVG."""
    return _svg(draw_position_similarity(embedding))


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
    return _svg(draw_bias_maps(maps))


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


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure) -> str:
    data = io.BytesIO()
    # No date and fixed ids: the same run gives the same figure.
    with matplotlib.rc_context({"svg.hashsalt": "vitswin_jax"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return _uri("image/svg+xml", data.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

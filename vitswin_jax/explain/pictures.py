"""Figures of one image, and of what a model has learned, for `vitswin explain`.

No text that a user chose is drawn here: the page sets it, in whatever script it is written.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from vitswin_jax.explain.attention import LayerAttention, on_image
from vitswin_jax.models.geometry import BlockGeometry
from vitswin_jax.nn.sides import Size
from vitswin_jax.report.figures import cell_ticks, mosaic

Pixels = UInt8[np.ndarray, "h w 3"]

_HEAT = "inferno"
SMALL = 96  # images of fewer pixels a side are shown with their pixels


def heat_on_image(
    image: Pixels, heat: Float[np.ndarray, "i j"], *, stride: Size, least: float
) -> Figure:
    """Draws a map of patches over the image, from `least` to the map's most, and its colours."""
    figure = Figure(figsize=(4.2, 3.6 * image.shape[0] / image.shape[1]), layout="constrained")
    axes = figure.subplots()
    _add_bar(figure, axes, _cover(axes, image, heat, stride=stride, least=least))
    return figure


def image_uri(image: Pixels) -> str:
    """Returns the image for a page, without loss."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def heads(maps: Float[np.ndarray, "blocks heads h w"]) -> Figure:
    """Draws each block's heads' maps, a row a block; each map has its own scale, from 0."""
    blocks, count, h, w = maps.shape
    side = min(0.9, 12 / count)
    size = (0.8 + side * count, 0.6 + side * h / w * blocks)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    most = maps.max(axis=(2, 3), keepdims=True)
    relative = mosaic(maps / np.maximum(most, 1e-12))
    shown = axes.imshow(relative, cmap=_HEAT, vmin=0, vmax=1, interpolation="nearest")
    _add_bar(figure, axes, shown)
    axes.set(xlabel="head", ylabel="block")
    cell_ticks(axes, maps.shape, rows=np.arange(blocks), columns=np.arange(count))
    return figure


def windows(
    image: Pixels, layers: Sequence[tuple[LayerAttention, Float[np.ndarray, "_ _"]]]
) -> Figure:
    """Draws maps of layers over the image with their windows' outlines, two a row.

    Each map has its own scale, from its least to its most.
    """
    rows = -(-len(layers) // 2)
    height = 0.3 + 3.1 * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(6.2, height * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (layer, heat) in zip(grid, layers, strict=False):
        shown = _cover(axes, image, heat, stride=layer.stride, least=heat.min())
        _add_bar(figure, axes, shown)
        lines = [[(x, y) for y, x in line] for line in window_edges(layer)]
        axes.add_collection(LineCollection(lines, colors="white", linewidths=0.8))
        axes.set_title(layer.name.replace("_", " ").replace("/", ", "), loc="left", fontsize=8)
    return figure


def window_edges(layer: BlockGeometry) -> list[tuple[Size, Size]]:
    """Returns the lines ((y, x), (y, x)) between neighbours of different windows, in pixels."""
    of = np.zeros(layer.num_tokens, int)
    for window, tokens in enumerate(layer.tokens):
        of[tokens[tokens >= 0]] = window
    of = of.reshape(layer.size)
    (down, across), lines = layer.stride, []
    for y, x in np.argwhere(of[1:] != of[:-1]).tolist():
        lines.append((((y + 1) * down, x * across), ((y + 1) * down, (x + 1) * across)))
    for y, x in np.argwhere(of[:, 1:] != of[:, :-1]).tolist():
        lines.append(((y * down, (x + 1) * across), ((y + 1) * down, (x + 1) * across)))
    return lines


def distances(layers: Sequence[Float[np.ndarray, " _"]]) -> Figure:
    """Draws how far each head looks, a dot a head over its block (ViT, fig. 7 right)."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for block, heads_of in enumerate(layers):
        axes.plot(np.full(len(heads_of), block), heads_of, ".", color="#334e68", ms=7)
    axes.set(xlabel="block", ylabel="mean attention distance (pixels)", ylim=(0, None))
    axes.locator_params("x", integer=True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def filters(components: Float[np.ndarray, "k p q 3"]) -> Figure:
    """Draws filters as colours, seven a row; grey is zero, and each has its own scale."""
    rows = -(-len(components) // 7)
    figure = Figure(figsize=(6.2, 6.2 / 7 * rows), layout="constrained")
    for axes in (grid := figure.subplots(rows, 7, squeeze=False).ravel()):
        axes.set_axis_off()
    most = np.abs(components).max(axis=(1, 2, 3), keepdims=True)
    for axes, colours in zip(grid, 0.5 + components / np.maximum(2 * most, 1e-12), strict=False):
        axes.imshow(np.clip(colours, 0, 1), interpolation="nearest")
    return figure


def _show(axes: Axes, image: np.ndarray, **options) -> None:
    h, w = image.shape[:2]
    how = "nearest" if max(h, w) < SMALL else "antialiased"
    axes.imshow(image, extent=(0, w, h, 0), interpolation=how, **options)
    axes.set_axis_off()


def _cover(axes: Axes, image: Pixels, heat: np.ndarray, *, stride: Size, least: float) -> AxesImage:
    _show(axes, image.mean(-1), cmap="gray", vmin=0, vmax=255)
    h, w = image.shape[:2]
    plane = on_image(heat, stride=stride, size=(h, w))
    most = max(plane.max(), least + 1e-12)
    extent = (0, w, h, 0)
    return axes.imshow(plane, extent=extent, cmap=_HEAT, vmin=least, vmax=most, alpha=0.65)


def _add_bar(figure: Figure, axes: Axes, shown: AxesImage) -> None:
    """Draws what the colours of a map mean beside it: from its least to its most."""
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, ticks=shown.get_clim())
    bar.ax.set_yticklabels(["low", "high"], fontsize=8)
    bar.outline.set_visible(False)

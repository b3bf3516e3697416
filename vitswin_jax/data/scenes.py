"""Generated images of shapes, with the class of each pixel, for segmentation.

Each image has a few discs, squares and triangles of any size on a grey ground; colours are the
classes' own, with noise and shades, and a shape may hide others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

CLASSES = ("background", "disc", "square", "triangle")
_COLOURS = np.array([[110, 110, 110], [170, 80, 70], [80, 160, 80], [70, 90, 175]])
_NOISE = 25.0  # of each pixel, and as much of each shape's shade
_SHAPES = (2, 5)  # how many an image has


class Scenes(NamedTuple):
    """Images and the class of each of their pixels."""

    images: UInt8[np.ndarray, "n h w 3"]
    masks: Int[np.ndarray, "n h w"]


def make_scenes(count: int, *, size: int = 64, seed: int = 0) -> Scenes:
    """Returns `count` square images of `size` pixels; the same ones for the same seed."""
    drawn = [_scene(size, np.random.default_rng((seed, i))) for i in range(count)]
    images, masks = zip(*drawn, strict=True)
    return Scenes(np.stack(images), np.stack(masks))


def _scene(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((size, size), np.int32)
    shade = np.broadcast_to(_NOISE * rng.standard_normal(3), (size, size, 3))
    y, x = np.mgrid[:size, :size]
    for _ in range(rng.integers(*_SHAPES)):
        label = rng.integers(1, len(CLASSES))
        radius = size * rng.uniform(0.12, 0.3)
        dy, dx = y - rng.uniform(0, size), x - rng.uniform(0, size)
        inside = _inside(CLASSES[label], dy / radius, dx / radius)
        mask = np.where(inside, label, mask).astype(np.int32)
        shade = np.where(inside[..., None], _NOISE * rng.standard_normal(3), shade)
    noise = _NOISE * rng.standard_normal((size, size, 3))
    return np.clip(_COLOURS[mask] + shade + noise, 0, 255).astype(np.uint8), mask


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the places that are in a shape of radius 1 around (0, 0)."""
    if shape == "disc":
        return y**2 + x**2 < 1
    if shape == "square":
        return np.maximum(abs(y), abs(x)) < 0.85
    return (y < 0.7) & (y > 2 * abs(x) - 1)

"""Shears and translations of rows and columns of an image, as Pillow's bicubic ones.

Pillow takes 16 neighbours of each pixel, with all its affine maps. These move along one axis, where
four neighbours give the same float64 numbers.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Int16, UInt8

Colour = tuple[int, int, int]

_STRIP = 64  # rows of floats that stay in a core's cache: twice as fast as the whole at once


def slide(
    image: UInt8[np.ndarray, "h w 3"],
    shift: Float[np.ndarray, " lines"],
    *,
    axis: int,
    fill: Colour,
) -> UInt8[np.ndarray, "h w 3"]:
    """Moves rows (axis 1) or columns (axis 0), each by its `shift` in pixels, to left or top.

    `fill` comes in from outside, and is not blended with the edge.
    """
    length = image.shape[axis]
    start = np.floor(shift)
    near = _neighbours(image, start, axis=axis)
    before, here, after, far = (_cut(near, k, length, axis=axis) for k in range(4))
    part = (shift - start)[:, None] if axis == 1 else np.repeat(shift - start, 3)[None]
    part = np.broadcast_to(part, here.shape)
    moved = np.empty(here.shape, np.uint8)
    for top in range(0, len(moved), _STRIP):
        strip = slice(top, top + _STRIP)
        moved[strip] = _cubic(before[strip], here[strip], after[strip], far[strip], part[strip])
    at = shift[:, None] + np.arange(length) + 0.5
    outside = ((at < 0) | (at >= length)).astype(np.uint8)
    outside = outside if axis == 1 else np.ascontiguousarray(outside.T)
    colour = cv2.merge([np.full_like(outside, level) for level in fill])
    return cv2.copyTo(colour, outside, moved.reshape(image.shape))


def _neighbours(
    image: np.ndarray, start: Float[np.ndarray, " lines"], *, axis: int
) -> Int16[np.ndarray, "rows levels"]:
    """Returns each line from the pixel before `start` on, three longer than it is; edges repeat."""
    length = image.shape[axis]
    places = np.empty((len(start), length + 3, 2), np.int16)  # x and y of each pixel
    along = start[:, None] + np.arange(-1, length + 2)
    places[..., 1 - axis] = np.clip(along, 0, length - 1)
    places[..., axis] = np.arange(len(start))[:, None]
    if axis == 0:
        places = np.ascontiguousarray(places.transpose(1, 0, 2))
    near = cv2.remap(image, places, np.empty(0), cv2.INTER_NEAREST)
    return near.astype(np.int16).reshape(len(near), -1)


def _cut(near: np.ndarray, first: int, length: int, *, axis: int) -> np.ndarray:
    return near[:, 3 * first : 3 * (first + length)] if axis == 1 else near[first : first + length]


def _cubic(
    before: np.ndarray, here: np.ndarray, after: np.ndarray, far: np.ndarray, part: np.ndarray
) -> np.ndarray:
    """Interpolates at `part` of the way from `here` to `after`, uint8.

    Keys' cubic with a = -1, which Pillow's affine maps have, rounded towards zero.
    """
    slope = after - before
    bend = before - here
    third = far - after - bend
    value = third * part
    value += bend - third
    value *= part
    value += slope
    value *= part
    value += here
    return np.clip(value, 0, 255, out=value).astype(np.uint8)

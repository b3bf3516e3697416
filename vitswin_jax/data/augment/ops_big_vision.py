"""RandAugment's operations as big_vision computes them (its `pp/archive/autoaugment.py`).

Those are TensorFlow's, and differ from Pillow's in more than rounding: affine maps take the nearest
pixel and leave grey 128, levels run past 10, `contrast` blends with a grey that says how large the
image is, and what overflows does so as TensorFlow's uint8 does. Checkpoints were trained with all
of that, so all of it is here. Each takes and returns uint8 (h, w, 3) in [0, 255].
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from vitswin_jax.data.augment.ops import (
    LEVELS,
    Pixels,
    blend,
    blend_table,
    look_up,
    smooth,
    stretch_table,
)
from vitswin_jax.data.augment.ops import solarize as solarize_from

_FILL = 128
_GREY = np.array([0.2989, 0.587, 0.114], np.float32)  # tf.image.rgb_to_grayscale


def autocontrast(image: Pixels) -> Pixels:
    """Stretches each channel's levels over [0, 255], in float32."""
    return look_up(image, stretch_table(image, np.float32))


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keeps the highest `bits`, at least one: uint8 is shifted by 7 at most."""
    shift = min(max(8 - bits, 0), 7)
    return look_up(image, LEVELS >> shift << shift)


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Inverts the levels from `threshold` mod 256 on, so that 256 inverts everything."""
    return solarize_from(image, threshold % 256)


def color(image: Pixels, factor: float) -> Pixels:
    """Moves colours away from grey."""
    return blend(cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), image, factor)


def contrast(image: Pixels, factor: float) -> Pixels:
    """Moves levels away from the grey h w / 256, which the original takes for their mean."""
    pixels = image.shape[0] * image.shape[1]
    return look_up(image, blend_table(min(255, pixels // 256), factor))


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Moves levels away from the smoothed image, whose levels are rounded towards zero."""
    return blend(smooth(image, cv2.CV_32F).astype(np.uint8), image, factor)


def rotate(image: Pixels, degrees: float) -> Pixels:
    """Turns an image about the middle of its pixels' centres."""
    height, width = (np.float32(side) for side in image.shape[:2])
    angle = np.float32(degrees * (math.pi / 180.0))
    cos, sin = np.cos(angle), np.sin(angle)
    right, bottom = width - 1, height - 1
    offset_x = (right - (cos * right - sin * bottom)) / np.float32(2)
    offset_y = (bottom - (sin * right + cos * bottom)) / np.float32(2)
    inverse = (cos, -sin, offset_x, sin, cos, offset_y)
    return _nearest(image, tuple(float(number) for number in inverse))


def shear_x(image: Pixels, factor: float) -> Pixels:
    """Moves row y to the left by `factor` * y."""
    return _nearest(image, (1.0, factor, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Pixels, factor: float) -> Pixels:
    """Moves column x upwards by `factor` * x."""
    return _nearest(image, (1.0, 0.0, 0.0, factor, 1.0, 0.0))


def translate_x(image: Pixels, pixels: float) -> Pixels:
    """Moves an image to the left."""
    return _nearest(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def translate_y(image: Pixels, pixels: float) -> Pixels:
    """Moves an image upwards."""
    return _nearest(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def cutout(image: Pixels, centre: tuple[int, int], half: int) -> Pixels:
    """Greys the square that reaches `half` to each side of `centre` (row, column)."""
    cut = image.copy()
    rows, columns = (slice(max(0, place - half), place + half) for place in centre)
    cut[rows, columns] = _FILL
    return cut


def _grey(image: Pixels) -> np.ndarray:
    """Returns the luminance, uint8 (h, w), rounded as `convert_image_dtype` does."""
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    return (scaled @ _GREY * np.float32(255.5)).astype(np.uint8)


def _nearest(image: Pixels, inverse: tuple[float, ...]) -> Pixels:
    """Takes the pixel at (x, y) from the one nearest to (a x + b y + c, d x + e y + f).

    Here x and y are of pixel centres, in float32, and halves go away from zero.
    """
    height, width = image.shape[:2]
    a, b, c, d, e, f = np.asarray(inverse, np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    places = np.empty((height, width, 2), np.int16)
    places[..., 0] = _round(a * x + b * y + c, width)
    places[..., 1] = _round(d * x + e * y + f, height)
    border = cv2.BORDER_CONSTANT, (_FILL,) * 3
    return cv2.remap(image, places, np.empty(0), cv2.INTER_NEAREST, None, *border)


def _round(values: np.ndarray, side: int) -> np.ndarray:
    """Rounds places, those outside of [0, side) to one outside that int16 can hold."""
    return np.clip(np.trunc(values + np.copysign(np.float32(0.5), values)), -1, side)

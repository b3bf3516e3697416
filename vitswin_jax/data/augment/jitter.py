"""Small random changes of one image: its position and its colours."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from vitswin_jax.data.augment import ops
from vitswin_jax.data.augment.ops import Pixels
from vitswin_jax.data.channels import band_by_band


def color_jitter(image: Pixels, rng: np.random.Generator, *, strength: float, hue: float) -> Pixels:
    """Changes brightness, contrast, saturation and hue in random order, as torchvision does.

    The first three by factors in [1 - strength, 1 + strength], hue by up to `hue` turns, in
    [0, 0.5], either way.
    """
    changes: list[Callable[[Pixels, float], Pixels]] = []
    if strength:
        changes = [ops.brightness, ops.contrast, ops.color]
    amounts = list(rng.uniform(max(0.0, 1 - strength), 1 + strength, len(changes)))
    if hue:
        changes.append(ops.hue)
        amounts.append(rng.uniform(-hue, hue))
    for index in rng.permutation(len(changes)):
        image = changes[index](image, amounts[index])
    return image


def random_affine(
    image: np.ndarray, rng: np.random.Generator, *, shift: float, rotate: float, zoom: float
) -> np.ndarray:
    """Turns, enlarges and moves an image about its centre; the edge repeats outwards."""
    h, w = image.shape[:2]
    angle = math.radians(rng.uniform(-rotate, rotate))
    factor = math.exp(rng.uniform(-1, 1) * math.log1p(zoom))
    move_x, move_y = rng.uniform(-shift, shift) * w, rng.uniform(-shift, shift) * h
    # Pillow asks where each output pixel comes from, so this is the inverse map.
    a, b = math.cos(angle) / factor, math.sin(angle) / factor
    centre_x, centre_y = w / 2, h / 2
    c = centre_x - a * (centre_x + move_x) - b * (centre_y + move_y)
    f = centre_y + b * (centre_x + move_x) - a * (centre_y + move_y)
    xs = [a * x + b * y + c for x in (0, w) for y in (0, h)]
    ys = [-b * x + a * y + f for x in (0, w) for y in (0, h)]
    pad = 2 + math.ceil(max(0, -min(xs), max(xs) - w, -min(ys), max(ys) - h))
    inverse = (a, b, c + pad, -b, a, f + pad)

    def transform(pixels: np.ndarray) -> np.ndarray:
        # np.pad(mode="edge") would take several times as long as the whole affine map.
        padded = cv2.copyMakeBorder(pixels, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        method, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(padded).transform((w, h), method, inverse, resample))

    return band_by_band(transform, image)

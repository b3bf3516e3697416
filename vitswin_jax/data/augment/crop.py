"""Random crops of training images, resized to the model's size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitswin_jax.data.channels import band_by_band
from vitswin_jax.data.decode import decode_image, jpeg_size

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the whole image

_CROP_ATTEMPTS = 10  # as in Inception's and torchvision's random resized crop
_REDUCTIONS = (8, 4, 2)  # that libjpeg-turbo has fast code for

OPENCV_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def random_box(
    image_size: Sequence[int],
    scale: Sequence[float],
    ratio: Sequence[float],
    rng: np.random.Generator,
) -> Box:
    """Returns a random part of an image by area and aspect ratio (width / height)."""
    h, w = image_size
    for _ in range(_CROP_ATTEMPTS):
        area = h * w * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_w <= w and 0 < crop_h <= h:
            top, left = (int(rng.integers(0, spare + 1)) for spare in (h - crop_h, w - crop_w))
            return left, top, left + crop_w, top + crop_h
    # An image longer than `ratio` allows: its middle, with the nearest aspect ratio.
    crop_w = max(1, min(w, round(h * ratio[1])))
    crop_h = max(1, min(h, round(w / ratio[0])))
    left, top = (w - crop_w) // 2, (h - crop_h) // 2
    return left, top, left + crop_w, top + crop_h


def cut_and_resize(
    image: bytes | UInt8[np.ndarray, "h w c"],
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    interpolation: str,
    resizer: str,
    reduced_decode: bool,
    channels: int = 3,
    name: str = "image",
) -> UInt8[np.ndarray, "H W c"]:
    """Returns a random part of an image, resized to `size` (height, width).

    The part is chosen by the size in a JPEG's header, before it is decoded. Where it is to shrink
    by 2, 4 or 8 both ways, `reduced_decode` lets the decoder do so much of it.
    """
    whole = jpeg_size(image) if isinstance(image, bytes) and reduced_decode else None
    if whole is None or not isinstance(image, bytes):
        pixels = (
            decode_image(image, name=name, channels=channels) if isinstance(image, bytes) else image
        )
        box = random_box(pixels.shape[:2], scale, ratio, rng)
        return resize_box(pixels, box, size, interpolation=interpolation, resizer=resizer)
    box = left, top, right, bottom = random_box(whole, scale, ratio, rng)
    shrink = min((bottom - top) / size[0], (right - left) / size[1])
    reduction = next((n for n in _REDUCTIONS if n <= shrink), 1)
    pixels = decode_image(image, name=name, reduction=reduction, channels=channels)
    if reduction == 1 or pixels.shape[:2] == whole:  # a damaged file comes in full
        return resize_box(pixels, box, size, interpolation=interpolation, resizer=resizer)
    return _resize_fraction(pixels, [side / reduction for side in box], size, interpolation)


def pillow_resize(
    image: UInt8[np.ndarray, "h w c"],
    size: Sequence[int],
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "H W c"]:
    """Resizes `box` (left, top, right, bottom) of an image, or all of it, to (height, width)."""
    if box is None and image.shape[:2] == tuple(size):
        return image
    resample, to = Image.Resampling[interpolation.upper()], (size[1], size[0])

    def resize(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize(to, resample, box=box))

    return band_by_band(resize, image)


def resize_box(
    image: UInt8[np.ndarray, "h w c"],
    box: Box,
    size: Sequence[int],
    *,
    interpolation: str,
    resizer: str,
) -> UInt8[np.ndarray, "H W c"]:
    """Cuts out a box and resizes it to `size`, by "pillow" or "opencv".

    Pillow's kernels widen as an image shrinks, so that nothing aliases. OpenCV's do not: there an
    image that shrinks is first brought to a whole multiple of `size` and then averaged. Kernels
    other than bilinear and bicubic are Pillow's either way.
    """
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    if resizer == "pillow" or interpolation not in OPENCV_INTERPOLATION:
        return pillow_resize(part, size, interpolation)
    kernel = OPENCV_INTERPOLATION[interpolation]
    height, width = (
        side * math.ceil(given / side) for side, given in zip(size, part.shape[:2], strict=True)
    )

    def resize(part: np.ndarray) -> np.ndarray:
        part = cv2.resize(part, (width, height), interpolation=kernel)
        if (height, width) == tuple(size):
            return part
        return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA)

    return band_by_band(resize, part)


def _resize_fraction(
    image: UInt8[np.ndarray, "h w c"], box: Sequence[float], size: Sequence[int], interpolation: str
) -> UInt8[np.ndarray, "H W c"]:
    """Resizes a box whose edges lie between pixels; only Pillow can."""
    left, top, right, bottom = box
    x, y = math.floor(left), math.floor(top)
    part = image[y : math.ceil(bottom), x : math.ceil(right)]
    return pillow_resize(part, size, interpolation, (left - x, top - y, right - x, bottom - y))

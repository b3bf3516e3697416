"""The operations of AutoAugment and RandAugment on an image, equal to Pillow's in every grey level.

Each takes and returns uint8 (h, w, 3) in [0, 255]. Tables, histograms and the 3x3 filter are
OpenCV's, which takes a fraction of Pillow's time for the same integers, as slide.py does; what
OpenCV would round differently (rotation, colour, blur, hue) stays Pillow's.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageEnhance, ImageFilter

from vitswin_jax.data.augment.slide import Colour, slide

Pixels = UInt8[np.ndarray, "h w 3"]

# A worker has one core; OpenCV's own threads would only take turns with Grain's.
cv2.setNumThreads(0)

LEVELS = np.arange(256)

AFFINE_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def look_up(image: Pixels, table: Shaped[np.ndarray, "..."]) -> Pixels:
    """Replaces every level by its entry, rounded towards zero and kept in [0, 255].

    `table` is (256,), or (3, 256) for a table per channel.
    """
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table if table.ndim == 1 else table.T[None])


def histogram(image: Pixels) -> np.ndarray:
    """Returns how often each channel has each level, int64 (3, 256)."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.stack(counts).reshape(3, 256).astype(np.int64)  # OpenCV 4 has (256, 1) each


def autocontrast(image: Pixels) -> Pixels:
    """Stretches each channel's levels over [0, 255]; a channel of one level stays."""
    return look_up(image, stretch_table(image, np.float64))


def stretch_table(image: Pixels, dtype: type) -> np.ndarray:
    """Returns autocontrast's table, (3, 256), computed in `dtype`."""
    extremes = [cv2.minMaxLoc(cv2.extractChannel(image, channel))[:2] for channel in range(3)]
    low, high = np.array(extremes, dtype).T[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = dtype(255) / (high - low)
        stretched = LEVELS.astype(dtype) * scale - low * scale
    return np.where(high > low, stretched, LEVELS)


def equalize(image: Pixels) -> Pixels:
    """Maps each channel's levels so that they are spread about evenly."""
    counts = histogram(image)
    below = np.cumsum(counts, 1) - counts
    highest = 255 - (counts[:, ::-1] > 0).argmax(1)  # all but its pixels are spread
    step = np.take_along_axis(below, highest[:, None], 1) // 255
    spread = (step // 2 + below) // np.maximum(step, 1)
    return look_up(image, np.where(step > 0, spread, LEVELS))


def invert(image: Pixels) -> Pixels:
    """Returns the negative."""
    return 255 - image


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Inverts the levels from `threshold` on."""
    return look_up(image, np.where(threshold > LEVELS, LEVELS, 255 - LEVELS))


def solarize_add(image: Pixels, add: int) -> Pixels:
    """Adds to the levels below 128."""
    return look_up(image, np.where(LEVELS < 128, LEVELS + add, LEVELS))


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keeps the highest `bits` of each level; 0 leaves black, 8 and more everything."""
    return image if bits >= 8 else look_up(image, LEVELS & ~(2 ** (8 - bits) - 1))


def blend_table(degenerate: int, factor: float) -> np.ndarray:
    """Returns the table of levels moved away from `degenerate`: float32, as Pillow blends."""
    grey = np.float32(degenerate)
    return grey + np.float32(factor) * (LEVELS.astype(np.float32) - grey)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Scales all levels: 0 is black, 1 the image."""
    return look_up(image, blend_table(0, factor))


def contrast(image: Pixels, factor: float) -> Pixels:
    """Moves levels away from the image's mean grey: 0 is grey, 1 the image."""
    mean = np.asarray(Image.fromarray(image).convert("L")).mean()
    return look_up(image, blend_table(int(mean + 0.5), factor))


def color(image: Pixels, factor: float) -> Pixels:
    """Moves colours away from grey: 0 is grey, 1 the image."""
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def smooth(image: Pixels, dtype: int = -1) -> np.ndarray:
    """Averages 3x3 neighbours with weights 1, 1, 1, 1, 5, ... over 13; the rim stays.

    `dtype` is OpenCV's; -1 rounds to uint8.
    """
    blurred = cv2.filter2D(image, dtype, _SMOOTH)
    blurred[[0, -1]] = image[[0, -1]]
    blurred[:, [0, -1]] = image[:, [0, -1]]
    return blurred


def blend(degenerate: Pixels, image: Pixels, factor: float) -> Pixels:
    """Returns degenerate + factor (image - degenerate), towards zero, in float32 as Pillow does."""
    start = degenerate.astype(np.float32)
    moved = image.astype(np.float32)
    moved -= start
    moved *= np.float32(factor)
    moved += start
    return np.clip(moved, 0, 255, out=moved).astype(np.uint8)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Moves levels away from the smoothed image: 0 is smooth, 1 the image."""
    return blend(smooth(image), image, factor)


def gaussian_blur(image: Pixels, radius: float) -> Pixels:
    """Blurs with a standard deviation of `radius` pixels, as Pillow approximates it."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def grey(image: Pixels) -> Pixels:
    """Returns the luminance (ITU-R 601-2) in all three channels."""
    luminance = np.asarray(Image.fromarray(image).convert("L"))
    return cv2.cvtColor(luminance, cv2.COLOR_GRAY2RGB)


def hue(image: Pixels, shift: float) -> Pixels:
    """Turns the hue by `shift` of a full circle, in [-0.5, 0.5], as torchvision's adjust_hue."""
    angle, *others = Image.fromarray(image).convert("HSV").split()
    turned = np.asarray(angle) + np.int32(shift * 255).astype(np.uint8)  # wraps round on purpose
    return np.asarray(Image.merge("HSV", (Image.fromarray(turned), *others)).convert("RGB"))


def rotate(image: Pixels, degrees: float, *, fill: Colour, interpolation: str) -> Pixels:
    """Turns an image counter-clockwise about its centre; `fill` comes in from outside."""
    resample = AFFINE_RESAMPLING[interpolation]
    return np.asarray(Image.fromarray(image).rotate(degrees, resample, fillcolor=fill))


def shear_x(image: Pixels, factor: float, *, fill: Colour, interpolation: str) -> Pixels:
    """Moves row y to the left by `factor` * y."""
    if interpolation == "bicubic":
        rows = factor * (np.arange(image.shape[0]) + 0.5)
        return slide(image, rows, axis=1, fill=fill)
    return affine(image, (1.0, factor, 0.0, 0.0, 1.0, 0.0), fill, interpolation)


def shear_y(image: Pixels, factor: float, *, fill: Colour, interpolation: str) -> Pixels:
    """Moves column x upwards by `factor` * x."""
    if interpolation == "bicubic":
        columns = factor * (np.arange(image.shape[1]) + 0.5)
        return slide(image, columns, axis=0, fill=fill)
    return affine(image, (1.0, 0.0, 0.0, factor, 1.0, 0.0), fill, interpolation)


def translate_x(image: Pixels, share: float, *, fill: Colour, interpolation: str) -> Pixels:
    """Moves an image to the left by `share` of its width."""
    height, width = image.shape[:2]
    if interpolation == "bicubic":
        return slide(image, np.full(height, share * width), axis=1, fill=fill)
    return affine(image, (1.0, 0.0, share * width, 0.0, 1.0, 0.0), fill, interpolation)


def translate_y(image: Pixels, share: float, *, fill: Colour, interpolation: str) -> Pixels:
    """Moves an image upwards by `share` of its height."""
    height, width = image.shape[:2]
    if interpolation == "bicubic":
        return slide(image, np.full(width, share * height), axis=0, fill=fill)
    return affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, share * height), fill, interpolation)


def affine(image: Pixels, inverse: tuple[float, ...], fill: Colour, interpolation: str) -> Pixels:
    """Takes the pixel at (x, y) from (a x + b y + c, d x + e y + f); `fill` from outside."""
    whole, resample = Image.fromarray(image), AFFINE_RESAMPLING[interpolation]
    map_ = Image.Transform.AFFINE
    return np.asarray(whole.transform(whole.size, map_, inverse, resample, fillcolor=fill))

"""From a decoded image to one of the model's size: for evaluation, and augmented for training.

All of it is Pillow and numpy on uint8; normalising and mixing happen on the device.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vitswin_jax.data.decode import decode_image
from vitswin_jax.types import UserError

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
CropMode = Literal["center", "squash"]
TrainCrop = Literal["random_resized", "shift", "none"]
Pixels = UInt8[np.ndarray, "h w 3"]

_LONGEST = 16  # times the size asked for: how long a resized image may become
_CROP_ATTEMPTS = 10  # as in Inception's and torchvision's random resized crop


@dataclass(frozen=True)
class Preprocess:
    """The transform of evaluation, kept with the weights as `dataclasses.asdict` gives it.

    `img_size` is (height, width). "center" resizes the image, keeping its shape, until it
    just covers img_size / crop_fraction, and cuts out the middle, as torchvision's Resize
    and CenterCrop do; "squash" resizes the whole image to `img_size`, its shape be what it
    may. `mean` and `std` are of pixels in [0, 1].

    Raises UserError, with everything that is wrong in one line.
    """

    img_size: Sequence[int]
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    crop_fraction: float = 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for field in ("img_size", "mean", "std"):  # JSON has lists; here they are tuples
            object.__setattr__(self, field, tuple(getattr(self, field)))
        wrong = [
            *_wrong_size(self.img_size),
            *_wrong_choice("interpolation", self.interpolation, get_args(Interpolation)),
            *_wrong_choice("crop_mode", self.crop_mode, get_args(CropMode)),
        ]
        if not 0 < self.crop_fraction <= 1:
            wrong.append(f"crop_fraction={self.crop_fraction} must be in (0, 1]")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            wrong.append(f"mean={self.mean} and std={self.std} must be three numbers, std above 0")
        _raise_all("preprocess", wrong)

    def __call__(self, image: bytes | Pixels) -> Float32[np.ndarray, "H W 3"]:
        """Returns the model's input for an encoded or a decoded uint8 image."""
        if isinstance(image, bytes):
            image = decode_image(image)
        return self.normalize(self.image(image))

    def image(self, image: Pixels) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the image, resized and cropped to `img_size`, uint8 in [0, 255].

        Equal, bit for bit, to resizing the whole image by Pillow and then cropping it.
        """
        if self.crop_mode == "squash":
            return _resize(image, self.img_size, self.interpolation, box=None)
        return _resize_and_crop(image, self.img_size, self.crop_fraction, self.interpolation)

    def normalize(self, images: UInt8[np.ndarray, "*b h w 3"]) -> Float32[np.ndarray, "*b h w 3"]:
        """Returns (images / 255 - mean) / std."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (images.astype(np.float32) / np.float32(255) - mean) / std


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of training: a crop, a small affine map and a mirror, all optional.

    `crop` is "random_resized" for photographs (a part of the image with `scale` of its
    area and an aspect `ratio`, Inception; Szegedy et al. 2015), "shift" for small centred
    objects such as digits (the whole image, moved by up to `shift` of its height and
    width) or "none" (the whole image). `rotate` is in degrees to either side; `zoom` 0.1
    makes things up to 1.1 times larger or smaller; what comes into view from outside
    repeats the edge. `flip` mirrors half of the images left to right.

    Raises UserError, with everything that is wrong in one line.
    """

    img_size: Sequence[int]
    crop: str = "random_resized"
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    shift: float = 0.1
    rotate: float = 0.0
    zoom: float = 0.0
    flip: bool = True
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for field in ("img_size", "scale", "ratio"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        wrong = [
            *_wrong_size(self.img_size),
            *_wrong_choice("crop", self.crop, get_args(TrainCrop)),
            *_wrong_choice("interpolation", self.interpolation, get_args(Interpolation)),
        ]
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            wrong.append(f"scale={self.scale} must be (smallest, largest) in (0, 1]")
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1]):
            wrong.append(f"ratio={self.ratio} must be (smallest, largest), above 0")
        if not 0 <= self.shift < 1:
            wrong.append(f"shift={self.shift} must be in [0, 1)")
        if not 0 <= self.rotate <= 180:
            wrong.append(f"rotate={self.rotate} must be in [0, 180] degrees")
        if not 0 <= self.zoom <= 1:
            wrong.append(f"zoom={self.zoom} must be in [0, 1]")
        _raise_all("augment", wrong)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the augmented image, uint8 in [0, 255]; all chance comes from `rng`."""
        box = None
        if self.crop == "random_resized":
            box = _random_box(image.shape[:2], self.scale, self.ratio, rng)
        image = _resize(image, self.img_size, self.interpolation, box=box)
        shift = self.shift if self.crop == "shift" else 0.0
        if shift or self.rotate or self.zoom:
            image = _random_affine(image, rng, shift=shift, rotate=self.rotate, zoom=self.zoom)
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return np.ascontiguousarray(image)


def _resize(
    image: np.ndarray,
    size: Sequence[int],
    interpolation: str,
    *,
    box: tuple[float | int, ...] | None,
) -> np.ndarray:
    """Resizes `box` (left, top, right, bottom) of an image to (height, width)."""
    resample = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample, box=box))


def _resize_and_crop(
    image: np.ndarray, size: Sequence[int], fraction: float, interpolation: str
) -> np.ndarray:
    """Resizes an image until it just covers size / fraction, and returns its middle.

    Rounds as torchvision does: down for the covering size and the longer side, to even
    for the offset of the crop.
    """
    cover = [math.floor(side / fraction) for side in size]
    # The axis that needs the larger scale decides; integers, so that it is hit exactly.
    (h, w), (cover_h, cover_w) = image.shape[:2], cover
    if cover_h * w >= cover_w * h:
        resized = cover_h, max(cover_h * w // h, cover_w)
    else:
        resized = max(cover_w * h // w, cover_h), cover_w
    top, left = (round((full - side) / 2) for full, side in zip(resized, size, strict=True))
    bottom, right = top + size[0], left + size[1]
    if max(resized) > _LONGEST * max(size):  # a strip: the whole of it would be gigabytes
        y, x = h / resized[0], w / resized[1]
        box = left * x, top * y, min(right * x, w), min(bottom * y, h)
        return _resize(image, size, interpolation, box=box)
    # One axis at a time. Pillow rounds between the two, always did rows first, and from
    # version 13 on does columns first where that is faster, which changes grey levels.
    # Its `box` would save the work outside the crop, but is float32: it changes them too.
    rows = _resize(image, (h, resized[1]), interpolation, box=None)[:, left:right]
    return _resize(rows, (resized[0], size[1]), interpolation, box=None)[top:bottom]


def _random_box(
    image_size: Sequence[int],
    scale: Sequence[float],
    ratio: Sequence[float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Returns a random part of an image by area and aspect ratio (width / height)."""
    h, w = image_size
    for _ in range(_CROP_ATTEMPTS):
        area = h * w * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_w <= w and 0 < crop_h <= h:
            top, left = rng.integers(0, h - crop_h + 1), rng.integers(0, w - crop_w + 1)
            return int(left), int(top), int(left) + crop_w, int(top) + crop_h
    # An image longer than `ratio` allows: its middle, with the nearest aspect ratio.
    crop_w = max(1, min(w, round(h * ratio[1])))
    crop_h = max(1, min(h, round(w / ratio[0])))
    left, top = (w - crop_w) // 2, (h - crop_h) // 2
    return left, top, left + crop_w, top + crop_h


def _random_affine(
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
    # np.pad(mode="edge") would take several times as long as the whole affine map.
    rows = np.clip(np.arange(-pad, h + pad), 0, h - 1)
    columns = np.clip(np.arange(-pad, w + pad), 0, w - 1)
    padded = Image.fromarray(image[rows[:, None], columns])
    inverse = (a, b, c + pad, -b, a, f + pad)
    return np.asarray(
        padded.transform((w, h), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    )


def _wrong_size(img_size: Sequence[int]) -> list[str]:
    if len(img_size) == 2 and all(isinstance(side, int) and side > 0 for side in img_size):
        return []
    return [f"img_size={img_size} must be (height, width), whole numbers above 0"]


def _wrong_choice(field: str, value: str, choices: Sequence[str]) -> list[str]:
    if value in choices:
        return []
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return [f"{field}={value!r} must be one of {', '.join(choices)}{hint}"]


def _raise_all(what: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise UserError(f"{what}: {'; '.join(wrong)}.")

"""From a decoded image to one of the model's size: for evaluation, and augmented for training.

All of it is on uint8; normalising, erasing and mixing happen on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.data.augment.auto_augment import parse_auto_augment
from vitswin_jax.data.augment.crop import cut_and_resize, pillow_resize
from vitswin_jax.data.augment.jitter import color_jitter, random_affine
from vitswin_jax.data.augment.ops import AFFINE_RESAMPLING, grey
from vitswin_jax.data.augment.policies import Policy, parse_rand_augment
from vitswin_jax.data.channels import as_rgb, band_by_band
from vitswin_jax.data.decode import decode_image

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
CropMode = Literal["center", "squash", "squash_crop"]
TrainCrop = Literal["random_resized", "random", "shift", "none"]
Resizer = Literal["opencv", "pillow"]
Pixels = UInt8[np.ndarray, "h w c"]

_OF_COLOURS = ("rand_augment", "auto_augment", "color_jitter", "hue", "grayscale")
"""Options of `TrainTransform` for images of 3 channels, or of 1 as if it were 3."""

_LONGEST = 16  # times the size asked for: how long a resized image may become


@dataclass(frozen=True)
class Preprocess:
    """The transform of evaluation, kept with the weights as `dataclasses.asdict` gives it.

    `img_size` is (height, width). "center" resizes the image, keeping its shape, until it
    just covers img_size / crop_fraction, and cuts out the middle, as torchvision's Resize
    and CenterCrop do; "squash" resizes the whole image to `img_size`, whatever its shape is;
    "squash_crop" resizes it to img_size / crop_fraction and cuts out the middle, as timm's squash
    does. `mean` and `std` are of pixels in [0, 1], one number for each channel: they say how many
    channels an image has.

    Raises UserError, with everything that is wrong in one line.
    """

    img_size: Sequence[int]
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    crop_fraction: float = 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name in ("img_size", "mean", "std"):  # JSON has lists; here they are tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        faults = _wrong_size(self.img_size)
        faults += wrong_choice("interpolation", self.interpolation, get_args(Interpolation))
        faults += wrong_choice("crop_mode", self.crop_mode, get_args(CropMode))
        fraction, mean, std = self.crop_fraction, self.mean, self.std
        # A smaller fraction would make a huge image of any.
        faults.need(0.05 <= fraction <= 1, f"crop_fraction={fraction} must be in [0.05, 1]")
        numbers = len(mean) == len(std) > 0 and min(std, default=0) > 0
        need = f"mean={mean} and std={std} must be a number for each channel, std above 0"
        faults.need(numbers, need)
        faults.check("preprocess: ")

    @classmethod
    def from_json(cls, img_size: Sequence[int], **stated: Any) -> Preprocess:
        """Returns it from plain data, where 1 may be 1.0; raises UserError as the class does."""
        for name in {"mean", "std"} & stated.keys():
            stated[name] = tuple(map(float, stated[name]))
        if "crop_fraction" in stated:
            stated["crop_fraction"] = float(stated["crop_fraction"])
        return cls(img_size, **stated)

    @property
    def channels(self) -> int:
        """The channels of an image."""
        return len(self.mean)

    def fitted(self, img_size: Sequence[int], channels: int) -> Preprocess:
        """Returns the same for a model of another image size and of other channels.

        Mean and std become their average for each channel, as in timm (`adapt_to_chs`).
        """
        changes: dict[str, Any] = {"img_size": tuple(img_size)}
        if channels != self.channels:
            for key in ("mean", "std"):
                value = getattr(self, key)
                changes[key] = (sum(value) / len(value),) * channels
        return dataclasses.replace(self, **changes)

    def decode(self, image: bytes | Pixels, *, name: str = "image") -> Pixels:
        """Returns the pixels of an image, of as many channels as this takes if it is encoded."""
        if isinstance(image, bytes):
            return decode_image(image, name=name, channels=self.channels)
        return image

    def __call__(self, image: bytes | Pixels) -> Float32[np.ndarray, "H W c"]:
        """Returns the model's input for an encoded or a decoded uint8 image."""
        return self.normalize(self.image(self.decode(image)))

    def image(self, image: Pixels) -> UInt8[np.ndarray, "H W c"]:
        """Returns the image, resized and cropped to `img_size`, uint8 in [0, 255].

        Equal, bit for bit, to resizing the whole image by Pillow and then cropping it.
        """
        if self.crop_mode == "squash":
            return pillow_resize(image, self.img_size, self.interpolation)
        if self.crop_mode == "squash_crop":
            return _squash_and_crop(image, self.img_size, self.crop_fraction, self.interpolation)
        return _resize_and_crop(image, self.img_size, self.crop_fraction, self.interpolation)

    def normalize(self, images: UInt8[np.ndarray, "*b h w c"]) -> Float32[np.ndarray, "*b h w c"]:
        """Returns (images / 255 - mean) / std."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (images.astype(np.float32) / np.float32(255) - mean) / std


@dataclass(frozen=True)
class TrainTransform:
    """The augmentation of training; docs/augment.md has each option's source.

    `crop` is "random_resized" for photographs (a part of the image with `scale` of its
    area and an aspect `ratio`, Inception; Szegedy et al. 2015), "shift" for small centred
    objects such as digits (the whole image, moved by up to `shift` of its height and
    width), "random" (any part of img_size, of the image resized until it covers img_size /
    crop_fraction as evaluation's is) or "none" (the whole image). `rotate` is in degrees to either
    side; `zoom` 0.1 makes things up to 1.1 times larger or smaller; what comes into view from
    outside repeats the edge. `flip` mirrors half of the images left to right.

    Then follow, in timm's order: `rand_augment` or `auto_augment`, a policy by its name;
    `color_jitter`, by which brightness, contrast and saturation may differ from 1, and `hue`, in
    turns; `grayscale`, how likely colour is lost. Their affine maps show `mean`, as levels in
    [0, 1], from outside. `mean` also says how many channels images have. One channel is augmented
    as the three equal ones of a grey image, which hue and saturation leave as they are. Other
    numbers than 1 and 3 have only crops, affine maps and flips.

    `resizer` "opencv" is several times as fast as "pillow", and as near to it as crop.resize_box
    says; `reduced_decode` is of crop.cut_and_resize. Both are of "random_resized" alone.

    Raises UserError, with everything that is wrong in one line.
    """

    img_size: Sequence[int]
    crop: str = "random_resized"
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    crop_fraction: float = 0.875
    shift: float = 0.1
    rotate: float = 0.0
    zoom: float = 0.0
    flip: bool = True
    interpolation: str = "bicubic"
    resizer: str = "opencv"
    reduced_decode: bool = True
    rand_augment: str | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    policy: Policy | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("img_size", "scale", "ratio", "mean"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        faults = _wrong_size(self.img_size)
        faults += wrong_choice("crop", self.crop, get_args(TrainCrop))
        faults += wrong_choice("interpolation", self.interpolation, get_args(Interpolation))
        faults += wrong_choice("resizer", self.resizer, get_args(Resizer))
        faults += self._wrong_numbers()
        policies = [
            parse(text)
            for parse, text in (
                (parse_rand_augment, self.rand_augment),
                (parse_auto_augment, self.auto_augment),
            )
            if text is not None
        ]
        faults += [policy for policy in policies if isinstance(policy, str)]
        faults.need(len(policies) < 2, "rand_augment and auto_augment cannot both be given")
        if policies:
            kind = "a policy's interpolation"
            faults += wrong_choice(kind, self.interpolation, AFFINE_RESAMPLING)
        faults.check("augment: ")
        object.__setattr__(self, "policy", policies[0] if policies else None)

    def fitted(self, img_size: Sequence[int]) -> TrainTransform:
        """Returns the same for another image size."""
        return dataclasses.replace(self, img_size=tuple(img_size))

    def _wrong_numbers(self) -> Faults:
        scale, ratio, fraction, mean = self.scale, self.ratio, self.crop_fraction, self.mean
        parts = len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1
        ratios = len(ratio) == 2 and 0 < ratio[0] <= ratio[1]
        levels = len(mean) > 0 and all(0 <= level <= 1 for level in mean)
        faults = Faults()
        faults.need(parts, f"scale={scale} must be (smallest, largest) in (0, 1]")
        faults.need(ratios, f"ratio={ratio} must be (smallest, largest), above 0")
        faults.need(0 < fraction <= 1, f"crop_fraction={fraction} must be in (0, 1]")
        faults.need(0 <= self.shift < 1, f"shift={self.shift} must be in [0, 1)")
        faults.need(0 <= self.rotate <= 180, f"rotate={self.rotate} must be in [0, 180] degrees")
        faults.need(0 <= self.hue <= 0.5, f"hue={self.hue} must be in [0, 0.5]")
        for name in ("zoom", "color_jitter", "grayscale"):
            value = getattr(self, name)
            faults.need(0 <= value <= 1, f"{name}={value} must be in [0, 1]")
        faults.need(levels, f"mean={mean} must be numbers in [0, 1], one for each channel")
        colours = [key for key in _OF_COLOURS if getattr(self, key)]
        faults.need(
            len(mean) in (1, 3) or not colours,
            f"{', '.join(colours)} must be None or 0 for images of {len(mean)} channels "
            "(model.in_chans): they are for 1 or 3",
        )
        return faults

    def __call__(
        self, image: bytes | Pixels, rng: np.random.Generator, *, name: str = "image"
    ) -> UInt8[np.ndarray, "H W c"]:
        """Returns the augmented image, uint8 in [0, 255]; all chance comes from `rng`.

        An encoded image that cannot be read raises UserError, which begins with `name`.
        """
        if self.crop == "random_resized":
            image = cut_and_resize(
                image,
                self.img_size,
                rng,
                scale=self.scale,
                ratio=self.ratio,
                interpolation=self.interpolation,
                resizer=self.resizer,
                reduced_decode=self.reduced_decode,
                channels=len(self.mean),
                name=name,
            )
        else:
            if isinstance(image, bytes):
                image = decode_image(image, name=name, channels=len(self.mean))
            if self.crop == "random":
                image = _resize_and_crop(
                    image, self.img_size, self.crop_fraction, self.interpolation, rng=rng
                )
            else:
                image = pillow_resize(image, self.img_size, self.interpolation)
        shift = self.shift if self.crop == "shift" else 0.0
        if shift or self.rotate or self.zoom:
            image = random_affine(image, rng, shift=shift, rotate=self.rotate, zoom=self.zoom)
        if self.flip and rng.random() < 0.5:
            # many times as fast as a copy of numpy's view
            image = band_by_band(lambda pixels: cv2.flip(pixels, 1), image)
        if any(getattr(self, key) for key in _OF_COLOURS):
            image = self._recolour(as_rgb(image), rng)[..., : len(self.mean)]
        return np.ascontiguousarray(image)

    def _recolour(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w 3"]:
        if self.policy is not None:
            mean = tuple(self.mean) * (3 // len(self.mean))
            red, green, blue = (min(255, round(255 * level)) for level in mean)
            fill = red, green, blue
            image = self.policy(image, rng, fill=fill, interpolation=self.interpolation)
        if self.color_jitter or self.hue:
            image = color_jitter(image, rng, strength=self.color_jitter, hue=self.hue)
        if self.grayscale and rng.random() < self.grayscale:
            image = grey(image)
        return image


def _resize_and_crop(
    image: np.ndarray,
    size: Sequence[int],
    fraction: float,
    interpolation: str,
    *,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Resizes an image until it just covers size / fraction; returns its middle, or a random part.

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
    spare = [full - side for full, side in zip(resized, size, strict=True)]
    if rng is None:
        top, left = (round(side / 2) for side in spare)
    else:
        top, left = (int(rng.integers(0, side + 1)) for side in spare)
    bottom, right = top + size[0], left + size[1]
    if max(resized) > _LONGEST * max(size):  # a strip: the whole of it would be gigabytes
        y, x = h / resized[0], w / resized[1]
        box = left * x, top * y, min(right * x, float(w)), min(bottom * y, float(h))
        return pillow_resize(image, size, interpolation, box)
    # One axis at a time. Pillow rounds between the two, always did rows first, and from
    # version 13 on does columns first where that is faster, which changes grey levels.
    # Its `box` would save the work outside the crop, but is float32: it changes them too.
    rows = pillow_resize(image, (h, resized[1]), interpolation)[:, left:right]
    return pillow_resize(rows, (resized[0], size[1]), interpolation)[top:bottom]


def _squash_and_crop(
    image: Pixels, size: Sequence[int], fraction: float, interpolation: str
) -> UInt8[np.ndarray, "H W c"]:
    """Resizes an image to size / fraction, whatever its shape is, and returns its middle."""
    whole = [math.floor(side / fraction) for side in size]
    top, left = (round((full - side) / 2) for full, side in zip(whole, size, strict=True))
    return pillow_resize(image, whole, interpolation)[top : top + size[0], left : left + size[1]]


def _wrong_size(img_size: Sequence[int]) -> Faults:
    faults, whole = Faults(), all(isinstance(side, int) and side > 0 for side in img_size)
    need = f"img_size={img_size} must be (height, width), whole numbers above 0"
    faults.need(whole and len(img_size) == 2, need)
    return faults

"""Random erasing on the device, after normalisation as its authors' and timm's code do it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.train.task.boxes import inside_boxes

EraseMode = Literal["pixel", "rand", "const"]

_ATTEMPTS = 10  # at a box that fits, as in timm; then there is none


@dataclass(frozen=True)
class Erasing:
    """Boxes erased from images (arXiv:1708.04896); the default erases none. timm's `RandomErasing`.

    An image loses boxes with probability `erase_prob`: one, or up to `erase_count`, each number as
    likely; each box of a share of the image's area uniform in `erase_area` and divided by their
    number, and of an aspect ratio (height / width) in [erase_aspect, 1 / erase_aspect], uniform in
    its logarithm. They are filled in
    units of the normalised image: "pixel" with N(0, 1) at each place, "rand" with one such
    colour, "const" with 0, the mean colour. Raises UserError that lists every value out of range.
    """

    erase_prob: float = 0.0
    erase_mode: str = "pixel"
    erase_count: int = 1
    erase_area: Sequence[float] = (0.02, 1 / 3)
    erase_aspect: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "erase_area", tuple(self.erase_area))
        faults = Faults()
        faults.need(0 <= self.erase_prob <= 1, f"erase_prob={self.erase_prob} must be in [0, 1]")
        faults += wrong_choice("erase_mode", self.erase_mode, get_args(EraseMode))
        faults.need(self.erase_count >= 1, f"erase_count={self.erase_count} must be 1 or more")
        area = self.erase_area
        if not (len(area) == 2 and 0 < area[0] <= area[1] < 1):
            faults.append(f"erase_area={area} must be (smallest, largest) in (0, 1)")
        if not 0 < self.erase_aspect <= 1:
            faults.append(f"erase_aspect={self.erase_aspect} must be in (0, 1]")
        faults.check("augment: ")


def draw_erased(
    key: Key[Array, ""], height: int, width: int, share: Float[Array, " b"], erasing: Erasing
) -> Int[Array, "b 4"]:
    """Draws a box (top, bottom, left, right) an image: the first of ten smaller than the image.

    `share` multiplies the area. Where none of the ten fits the box is empty.
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    tries, (low, high) = (*share.shape, _ATTEMPTS), erasing.erase_area
    area = jax.random.uniform(area_key, tries, minval=low, maxval=high) * share[:, None]
    area *= height * width
    longest = -math.log(erasing.erase_aspect)
    aspect = jnp.exp(jax.random.uniform(aspect_key, tries, minval=-longest, maxval=longest))
    h, w = (jnp.round(jnp.sqrt(x)).astype(jnp.int32) for x in (area * aspect, area / aspect))
    fits = (h < height) & (w < width)
    first = fits.argmax(1)[:, None]
    h, w = (jnp.take_along_axis(side, first, 1)[:, 0] * fits.any(1) for side in (h, w))
    top = jax.random.randint(top_key, h.shape, 0, height - h + 1)
    left = jax.random.randint(left_key, w.shape, 0, width - w + 1)
    return jnp.stack([top, top + h, left, left + w], -1)


def erase(
    key: Key[Array, ""], images: Float[Array, "b h w c"], erasing: Erasing
) -> Float[Array, "b h w c"]:
    """Erases boxes from normalised images, each image by draws of its own."""
    if erasing.erase_prob == 0:
        return images
    b, height, width = images.shape[:3]
    which_key, count_key, key = jax.random.split(key, 3)
    count = jax.random.randint(count_key, (b,), 1, erasing.erase_count + 1)
    count *= jax.random.bernoulli(which_key, erasing.erase_prob, (b,))
    for number, one in enumerate(jax.random.split(key, erasing.erase_count)):
        box_key, fill_key = jax.random.split(one)
        boxes = draw_erased(box_key, height, width, 1 / jnp.maximum(count, 1), erasing)
        inside = inside_boxes(boxes, height=height, width=width)
        inside &= (number < count)[:, None, None]
        fill = _fill(fill_key, images, erasing.erase_mode)
        images = jnp.where(inside[..., None], fill, images)
    return images


def _fill(key: Key[Array, ""], images: Array, mode: str) -> Array:
    b, height, width, channels = images.shape
    if mode == "const":
        return jnp.zeros_like(images)
    places = (height, width) if mode == "pixel" else (1, 1)
    noise = jax.random.normal(key, (b, *places, channels), images.dtype)
    return jnp.broadcast_to(noise, images.shape)

"""Sizes of models and images to choose from, and the properties of a dataset's images."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitswin_jax.core.types import Source, UserError
from vitswin_jax.data.decode import decode_image
from vitswin_jax.models.registry import create_model, model_kwargs
from vitswin_jax.nn.layers import pair
from vitswin_jax.plan.cost import describe
from vitswin_jax.weights.load import load_metadata

SMALL = 40
"""Pixels; images with a shorter side of at most so many are taken whole, at their own size."""
_LOOKED_AT = 48  # images whose size is looked at
_BACKWARD = 3  # times the multiply-adds of a forward pass that a training step has
_SHARE = 0.2  # of a large matrix product's speed, what a small transformer's step reaches

# width, blocks, heads
WIDTHS = {"small": (64, 4, 2), "medium": (128, 6, 4), "wide": (192, 12, 3), "large": (384, 12, 6)}
# Of images of more than SMALL pixels: pixels, patch, width; rows from cheap to dear.
PHOTOS = (
    (64, 8, "small"),
    (64, 8, "medium"),
    (96, 12, "medium"),
    (128, 16, "wide"),
    (160, 16, "wide"),
    (224, 16, "wide"),
    (224, 16, "large"),
)
SMALL_PATCH, SMALL_LEAST = 4, 16
"""Pixels: of a patch of small images, and of the smallest image that is given to a model."""
SCALES = (1.0, 0.75, 0.5)
"""Of the image size of a model that is given: what may be tried instead."""

Keys = Mapping[str, Any]
"""Keys of a config, joined by dots, and their values."""


@dataclass(frozen=True)
class Images:
    """The number, size and colour of the images of a training split."""

    count: int
    side: int
    """The median of the shorter sides, in pixels."""
    grey: bool
    """Whether no image has colours."""

    @property
    def small(self) -> bool:
        """Whether models take them whole."""
        return self.side <= SMALL


@dataclass(frozen=True)
class Size:
    """One size to choose: the keys that say it, a name, and what it costs."""

    name: str
    keys: Keys
    multiply_adds: int
    """Of an image's forward pass."""

    @property
    def flops(self) -> float:
        """Of an image in a training step."""
        return 2.0 * _BACKWARD * self.multiply_adds


def look_at(source: Source) -> Images:
    """Looks at some images of a split, evenly spaced; those that cannot be read are left out."""
    sides, grey = [], True
    for index in np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int).tolist():
        try:
            pixels = decode_image(
                source[index]["image"], name=source.describe(index), channels=None
            )
        except UserError:
            continue
        sides.append(min(pixels.shape[:2]))
        grey = grey and bool((pixels == pixels[..., :1]).all())
    if not sides:
        raise UserError(f"{source.name}: none of {_LOOKED_AT} images can be read.")
    return Images(len(source), round(statistics.median(sides)), grey)


def ladder(images: Images, side: int | None = None) -> list[Size]:
    """Returns the sizes of ViTs for images, the cheapest first; all of `side` pixels if given."""
    if side is not None:
        rows = [(side, _patch_of(side), width) for width in WIDTHS]
    elif images.small:
        side = max(SMALL_LEAST, -(-images.side // SMALL_PATCH) * SMALL_PATCH)
        rows = [(side, SMALL_PATCH, width) for width in ("small", "medium", "wide")]
    else:
        rows = [row for row in PHOTOS if row[0] <= max(images.side, PHOTOS[0][0])]
    return [_vit(*row) for row in rows]


def _patch_of(side: int) -> int:
    """Returns the largest patch that divides an image into 7 by 7 or more."""
    fits = [patch for patch in (16, 14, 12, 10, 8, 6, 4) if side % patch == 0]
    if not fits:
        raise UserError(
            f"model.img_size={side}: no patch size divides it; use {-(-side // 4) * 4}."
        )
    return next((patch for patch in fits if side >= 7 * patch), fits[-1])


def _vit(side: int, patch: int, width: str) -> Size:
    channels, blocks, heads = WIDTHS[width]
    fields = {"img_size": side, "patch_size": patch, "embed_dim": channels}
    fields |= {"depth": blocks, "num_heads": heads}
    patches = (side // patch) ** 2
    tokens = patches + 1
    block = 12 * channels**2 * tokens + 2 * channels * tokens**2  # linear layers; attention
    return Size(
        f"vit of {blocks} blocks of {channels} channels, {side} px",
        {f"model.{key}": value for key, value in fields.items()},
        3 * patch**2 * channels * patches + blocks * block,
    )


def image_sizes(config: ConfigDict) -> list[Size]:
    """Returns image sizes for the model of a config, the cheapest first, its own last.

    Of a run that starts from weights the model's own size is that of the weights.
    """
    fields = config.model.to_dict()
    name = fields.pop("name")
    if config.init_from is not None:
        metadata = load_metadata(config.init_from)
        name, fields = metadata.name, dict(metadata.fields)
    own = pair(fields["img_size"])
    step = fields["patch_size"] if "window_size" not in fields else 32
    if own[0] != own[1] or not isinstance(step, int):
        return [_size(name, {}, fields)]
    sides = {max(step, round(own[0] * scale / step) * step) for scale in SCALES[1:]}
    keys = [{"model.img_size": side} for side in sorted(sides) if side < own[0]]
    return [_size(name, each, fields) for each in (*keys, {})]


def _size(name: str, keys: Keys, fields: Keys) -> Size:
    own = dict(fields) | {key.removeprefix("model."): value for key, value in keys.items()}
    own = {key: value for key, value in own.items() if key not in ("num_classes", "dtype")}
    scan = {"scan": True} if "scan" in model_kwargs(name) else {}  # is traced sooner
    model = create_model(name, **own | scan)
    height, width = pair(model.img_size)
    words = f"{name}, {height} px" if height == width else f"{name}, {height} x {width} px"
    return Size(words, keys, describe(model).multiply_adds)


@functools.cache
def machine_flops(seconds: float = 0.5) -> float:
    """Measures the machine: the FLOP/s that a small transformer's training step may reach.

    Products of large matrices are timed on the first device, and all accelerators are taken to be
    like it; the best of several counts, so that what else the machine does disturbs little.
    """
    accelerated = jax.default_backend() != "cpu"
    side, kind = (4096, jnp.bfloat16) if accelerated else (512, jnp.float32)
    matrix = jnp.ones((side, side), kind)
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.monotonic()
        product(matrix).block_until_ready()
        best = min(best, time.monotonic() - begin)
    return _SHARE * 2 * side**3 / best * (jax.device_count() if accelerated else 1)

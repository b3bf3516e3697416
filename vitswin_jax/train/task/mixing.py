"""Targets, and mixing pairs of images: mixup and cutmix, on the device. Pure functions.

An image's partner is the one as far from the end of the batch as it is from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.train.task.boxes import inside_boxes

MixMode = Literal["batch", "pair", "element"]


@dataclass(frozen=True)
class Mixing:
    """Mixup, CutMix and label smoothing of batches; the defaults do nothing. timm's `Mixup`.

    `mixup_alpha` (arXiv:1710.09412) and `cutmix_alpha` (arXiv:1905.04899) are of the Beta
    distributions of the share an image keeps, 0 for off; images are mixed with probability
    `mix_prob`, and where both are on, by cutmix with probability `switch_prob`. `mix_mode` is who
    shares one draw of all that: the "batch", a "pair" of images, or each "element" alone, whose
    partner then may be mixed otherwise. Raises UserError that lists every value out of range.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    mix_mode: str = "batch"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        faults = Faults()
        for field in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, field)
            faults.need(value >= 0, f"{field}={value} must be 0 (off) or more")
        for field in ("mix_prob", "switch_prob", "label_smoothing"):
            value = getattr(self, field)
            faults.need(0 <= value <= 1, f"{field}={value} must be in [0, 1]")
        faults += wrong_choice("mix_mode", self.mix_mode, get_args(MixMode))
        faults.check("augment: ")


def smooth_one_hot(
    labels: Int[Array, " b"] | Float[Array, "b k"], num_classes: int, *, label_smoothing: float
) -> Float[Array, "b k"]:
    """Returns targets with 1 - s on the label and s / k on all (arXiv:1512.00567, section 7).

    Labels of two axes are hot already, 1 for each class that an image has.
    """
    hot = labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return hot * (1.0 - label_smoothing) + label_smoothing / num_classes


def draw_shares(
    key: Key[Array, ""], n: int, mixing: Mixing
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """Draws n times the share an image keeps, 1 where nothing is mixed, and whether by cutmix."""
    choice_key, apply_key, share_key = jax.random.split(key, 3)
    both = mixing.mixup_alpha > 0 and mixing.cutmix_alpha > 0
    cutmix_prob = mixing.switch_prob if both else float(mixing.cutmix_alpha > 0)
    is_cutmix = jax.random.bernoulli(choice_key, cutmix_prob, (n,))
    alpha = jnp.where(is_cutmix, mixing.cutmix_alpha or 1.0, mixing.mixup_alpha or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    return jnp.where(jax.random.bernoulli(apply_key, mixing.mix_prob, (n,)), share, 1.0), is_cutmix


def draw_boxes(
    key: Key[Array, ""], share: Float[Array, " n"], *, height: int, width: int
) -> Int[Array, "n 4"]:
    """Draws boxes (top, bottom, left, right) that leave about `share` of an image (CutMix, eq. 2).

    Centres are uniform and boxes are cut off at the image's edges, as by timm's rand_bbox.
    """
    cut = jnp.sqrt(1.0 - share)
    edges = []
    for axis_key, size in zip(jax.random.split(key), (height, width), strict=True):
        centre = jax.random.randint(axis_key, share.shape, 0, size)
        side = jnp.floor(size * cut).astype(jnp.int32)
        edges += [centre - side // 2, centre + (side + 1) // 2]
    limits = jnp.array([height, height, width, width])
    return jnp.clip(jnp.stack(edges, -1), 0, limits[None])


def blend_pairs(
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    *,
    share: Float[Array, " b"],
    is_cutmix: Bool[Array, " b"],
    boxes: Int[Array, "b 4"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mixes each image and its target with its partner's.

    Mixup keeps `share` of an image; cutmix replaces its box, and what that leaves is the target's
    share. A share of 1 leaves an image alone.
    """
    height, width = images.shape[1:3]
    cut = is_cutmix & (share < 1)
    own = (~inside_boxes(boxes, height=height, width=width)).astype(jnp.float32)
    keep = jnp.where(cut[:, None, None], own, share[:, None, None])[..., None]
    share = jnp.where(cut, own.mean((1, 2)), share)[:, None]
    images = images * keep + images[::-1] * (1.0 - keep)
    return images, targets * share + targets[::-1] * (1.0 - share)


def mix(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    mask: Float[Array, " b"],
    mixing: Mixing,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mixes each image and target with those of the batch read backwards, as timm does.

    A pair with padding in it (mask 0) stays unmixed.
    """
    if not (mixing.mixup_alpha > 0 or mixing.cutmix_alpha > 0):
        return images, targets
    b, height, width = images.shape[:3]
    share_key, box_key = jax.random.split(key)
    # Whose draw is whose: all have the first, pairs meet in the middle, each has its own.
    place = np.arange(b)
    modes = {"batch": 0 * place, "pair": np.minimum(place, b - 1 - place), "element": place}
    whose = modes[mixing.mix_mode]
    share, is_cutmix = draw_shares(share_key, int(whose.max()) + 1, mixing)
    boxes = draw_boxes(box_key, share, height=height, width=width)
    share = jnp.where(mask * mask[::-1] == 0, 1.0, share[whose])
    rows = {"share": share, "is_cutmix": is_cutmix[whose], "boxes": boxes[whose]}
    return blend_pairs(images, targets, **rows)

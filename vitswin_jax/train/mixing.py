"""Targets, and mixing pairs of images: mixup and cutmix, on the device. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vitswin_jax.types import UserError


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed and labels softened; the defaults do nothing.

    `mixup_alpha` (arXiv:1710.09412) and `cutmix_alpha` (arXiv:1905.04899) are of the Beta
    distributions of the share an image keeps, 0 for off; a batch is mixed with probability
    `mix_prob`, and where both are on, by cutmix with probability `switch_prob`. Raises UserError
    that lists every value out of range.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        wrong = [
            f"{field}={getattr(self, field)} must be 0 (off) or more"
            for field in ("mixup_alpha", "cutmix_alpha")
            if not getattr(self, field) >= 0
        ]
        wrong += [
            f"{field}={getattr(self, field)} must be in [0, 1]"
            for field in ("mix_prob", "switch_prob", "label_smoothing")
            if not 0 <= getattr(self, field) <= 1
        ]
        if wrong:
            raise UserError(f"augment: {'; '.join(wrong)}.")


def smooth_one_hot(
    labels: Int[Array, " b"], num_classes: int, *, label_smoothing: float
) -> Float[Array, "b k"]:
    """Returns targets with 1 - s on the label and s / k on all (arXiv:1512.00567, section 7)."""
    hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return hot * (1.0 - label_smoothing) + label_smoothing / num_classes


def cutmix_box(
    key: Key[Array, ""], share: Float[Array, ""], *, height: int, width: int
) -> Float[Array, "height width"]:
    """Returns a mask, 0 in a random box that leaves about `share` of the image (CutMix, eq. 2).

    The centre is uniform and the box is cut off at the image's edges, as in timm's rand_bbox.
    """
    cut = jnp.sqrt(1.0 - share)
    inside = []
    for axis_key, size in zip(jax.random.split(key), (height, width), strict=True):
        centre = jax.random.randint(axis_key, (), 0, size)
        half = jnp.floor(size * cut).astype(jnp.int32) // 2
        place = jnp.arange(size)
        inside.append((place >= centre - half) & (place < centre + half))
    return 1.0 - (inside[0][:, None] & inside[1][None, :]).astype(jnp.float32)


def mix(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b k"],
    mask: Float[Array, " b"],
    mixing: Mixing,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Mixes each image and target with those of the batch read backwards, as timm does by batch.

    One choice and one share for the whole batch. A pair with padding in it (mask 0) stays unmixed.
    """
    on = [mixing.mixup_alpha > 0, mixing.cutmix_alpha > 0]
    if not any(on):
        return images, targets
    choice_key, apply_key, share_key, box_key = jax.random.split(key, 4)
    cutmix_prob = mixing.switch_prob if all(on) else float(on[1])
    is_cutmix = jax.random.bernoulli(choice_key, cutmix_prob)
    alpha = jnp.where(is_cutmix, mixing.cutmix_alpha or 1.0, mixing.mixup_alpha or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    share = jnp.where(jax.random.bernoulli(apply_key, mixing.mix_prob), share, 1.0)

    height, width = images.shape[1:3]
    box = cutmix_box(box_key, share, height=height, width=width)
    keep = jnp.where(is_cutmix, box, jnp.full_like(box, share))
    share = jnp.where(is_cutmix, box.mean(), share)

    # One number an image: 1 where either of the pair is padding.
    whole = (mask * mask[::-1] == 0)[:, None]
    keep = jnp.where(whole[:, None, :, None], 1.0, keep[None, :, :, None])
    share = jnp.where(whole, 1.0, share)
    images = images * keep + images[::-1] * (1.0 - keep)
    return images, targets * share + targets[::-1] * (1.0 - share)

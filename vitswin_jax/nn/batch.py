"""Functions of a batch that training and evaluation share: normalisation, inference, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vitswin_jax.core.types import Params

Triple = Sequence[float]
"""One number for each channel."""


def infer(model: nn.Module, params: Params, *inputs: Array, **how: Any) -> Any:
    """Runs a model without dropout; returns its output, or that of the method in `how`."""
    return model.apply({"params": params}, *inputs, train=False, **how)


def normalize(images: Shaped[Array, "*b h w c"], *, mean: Triple, std: Triple) -> Array:
    """Returns float32 model input: uint8 in [0, 255] is scaled, floats are taken as they are."""
    if images.dtype != jnp.uint8:
        return images.astype(jnp.float32)
    scaled = images.astype(jnp.float32) / 255.0
    ones = (1,) * (images.ndim - 1) + (-1,)
    centre, spread = (jnp.asarray(x, jnp.float32).reshape(ones) for x in (mean, std))
    return (scaled - centre) / spread


def names_a_true_class(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Returns 1 where the largest logit is of a class that has the largest target, else 0.

    That is the label's class; of mixed targets, the heavier one; of several labels, any of them.
    """
    named = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], axis=-1)[:, 0]
    return (named == targets.max(-1)).astype(jnp.float32)


def mean_where(values: Float[Array, "b *k"], mask: Float[Array, " b"]) -> Float[Array, "*k"]:
    """Returns the mean of the rows whose mask is 1; 0 where there is none."""
    weights = mask.reshape(-1, *(1,) * (values.ndim - 1))
    return (values * weights).sum(0) / jnp.maximum(mask.sum(), 1.0)

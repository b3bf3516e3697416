"""Evaluation of self-distillation: whether a teacher says of a part of an image what it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.core.types import Params
from vitswin_jax.evaluate.step import Metrics
from vitswin_jax.models.dino import DINO
from vitswin_jax.nn.batch import Triple, infer, mean_where, normalize

MIDDLE = 0.7
"""The side of the part that is shown, of the image's: about half of its area."""


def middle(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns the middle of each image, enlarged to the image's size."""
    size = jnp.asarray(images.shape[1:3], jnp.float32)
    scale = jnp.full(2, 1.0 / MIDDLE)
    shift = size * (1.0 - 1.0 / MIDDLE) / 2
    return jax.image.scale_and_translate(
        images, images.shape, (1, 2), scale, shift, "linear", antialias=False
    )


def agreement_step(
    params: Params, batch: dict[str, Array], *, model: DINO, mean: Triple, std: Triple
) -> Metrics:
    """Returns sums over unmasked rows: `loss` and `count`.

    The loss is the cross-entropy of what the teacher says of the middle of an image, at the
    student's temperature, to what it says of all of it, at its own. The logits of the whole images
    are centred by their mean over the batch, so that a teacher that says the same of all images has
    a loss of log(out_dim) or more.
    """
    images, mask = normalize(batch["image"], mean=mean, std=std), batch["mask"]
    whole, part = (infer(model, params, x).logits for x in (images, middle(images)))
    center = mean_where(whole, mask)
    targets = jax.nn.softmax((whole - center[None]) / model.teacher_temp)
    losses = -(targets * jax.nn.log_softmax(part / model.student_temp)).sum(-1)
    return {"loss": (losses * mask).sum(), "count": mask.sum()}

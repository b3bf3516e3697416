"""The evaluation step: pure, the same while training and afterwards."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vitswin_jax.core.types import Params
from vitswin_jax.nn.batch import Triple, infer, names_a_true_class, normalize

Metrics = dict[str, Array]


def eval_step(
    params: Params,
    batch: dict[str, Array],
    *,
    model: nn.Module,
    mean: Triple,
    std: Triple,
) -> Metrics:
    """Returns float32 `logits` (b, k), and sums over unmasked rows: `loss`, `correct`, `count`.

    Labels and mask come with the logits, for a host has those of its own rows alone.
    With several labels an image, the loss is that of sigmoids, and correct is any of them.
    """
    images = normalize(batch["image"], mean=mean, std=std)
    logits: Array = infer(model, params, images)
    labels, mask = batch["label"], batch["mask"]
    if labels.ndim == 2:
        losses = optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1)
        right = names_a_true_class(logits, labels)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (logits.argmax(-1) == labels).astype(jnp.float32)
    return {
        "logits": logits,
        "label": labels,
        "mask": mask,
        "loss": (losses * mask).sum(),
        "correct": (right * mask).sum(),
        "count": mask.sum(),
    }

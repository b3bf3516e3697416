"""Evaluation steps: pure, the same while training and afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vitswin_jax.core.types import Params
from vitswin_jax.nn.batch import Triple, infer, names_a_true_class, normalize

Metrics = dict[str, Array]
SCORES = {"loss": "test/loss", "correct": "test/accuracy"}
"""The sums over examples that evaluation steps return, and the names of their means."""


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


def features_step(
    params: Params, batch: dict[str, Array], *, model: nn.Module, mean: Triple, std: Triple
) -> Metrics:
    """Returns the float32 features (b, d) of whole images as `logits`, with labels and mask."""
    images = normalize(batch["image"], mean=mean, std=std)
    features: Array = infer(model, params, images, method="features")
    return {"logits": features, "label": batch["label"], "mask": batch["mask"]}


def mean_scores(outputs: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """Returns the means of `SCORES` over all examples, from the outputs of an evaluation step."""
    totals: dict[str, Array] = {}
    for sums in outputs:
        for key in (*SCORES, "count"):
            if key in sums:
                totals[key] = totals.get(key, jnp.zeros(())) + sums[key]
    count = float(totals.pop("count"))
    return {SCORES[key]: float(total) / count for key, total in totals.items()}

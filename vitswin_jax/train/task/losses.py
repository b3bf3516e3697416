"""Losses over soft targets, one number an example; the step weights them by the mask."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vitswin_jax.core.choices import one_of

Loss = Callable[[Array, Array], Array]


def softmax_cross_entropy(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Returns -Σ targets log softmax(logits) for each example."""
    return optax.softmax_cross_entropy(logits, targets)


def sigmoid_cross_entropy(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Returns the sum over classes of binary cross-entropies (as AugReg and big_vision train)."""
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)


def binary_cross_entropy(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Returns the mean over classes of binary cross-entropies, targets above 0 being 1.

    As DeiT-3 trains (arXiv:2204.07118; `--bce-loss` in its code): of a mixed pair both
    classes are there. Label smoothing has to be off, or every class is.
    """
    return optax.sigmoid_binary_cross_entropy(logits, (targets > 0).astype(jnp.float32)).mean(-1)


LOSSES: dict[str, Loss] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "bce": binary_cross_entropy,
}


def make_loss(*, name: str) -> Loss:
    """Returns the loss called `name`; raises UserError, with the nearest, for an unknown name."""
    return one_of("loss.name", name, LOSSES)


def soft_distillation(
    logits: Float[Array, "b k"], teacher: Float[Array, "b k"], *, temperature: float
) -> Float[Array, " b"]:
    """Returns T² / k · KL(teacher ‖ student) of softmaxes at temperature T (DeiT, eq. 2).

    Over k classes, too, as DeiT's code divides it.
    """
    ours, theirs = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher))
    divergence = (jnp.exp(theirs) * (theirs - ours)).sum(-1)
    return divergence * temperature**2 / logits.shape[-1]


def hard_distillation(
    logits: Float[Array, "b k"], teacher: Float[Array, "b k"], *, temperature: float
) -> Float[Array, " b"]:
    """Returns the cross-entropy with the teacher's class (DeiT, eq. 3); it has no temperature."""
    del temperature
    return optax.softmax_cross_entropy_with_integer_labels(logits, teacher.argmax(-1))


DISTILLATIONS = {"soft": soft_distillation, "hard": hard_distillation}


def weigh_examples(
    labels: Int[Array, " b"] | Float[Array, "b k"], class_weights: tuple[float, ...] | None
) -> Float[Array, " b"]:
    """Returns what each example weighs: its class's weight, the mean of its classes' if several."""
    if class_weights is None:
        return jnp.ones(labels.shape[0], jnp.float32)
    weights = jnp.asarray(class_weights, jnp.float32)
    if labels.ndim == 1:
        return weights[labels]
    return labels @ weights / jnp.maximum(labels.sum(-1), 1.0)  # padding has no class

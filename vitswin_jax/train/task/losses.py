"""Losses over soft targets, one number an example; the step weights them by the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vitswin_jax.core.choices import one_of


@dataclass(frozen=True)
class Loss:
    """A loss over soft targets (b, k), one number per example, and what it asks of the targets."""

    name: str
    function: Callable[[Array, Array], Array]
    competing: bool = False
    """The classes share one probability, so an image has one label."""
    binary: bool = False
    """A target above 0 counts as 1, so label smoothing would make every class true."""

    def __call__(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"]
    ) -> Float[Array, " b"]:
        """Returns the loss of each example."""
        return self.function(logits, targets)


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

    DeiT-3 trains with it (arXiv:2204.07118; `--bce-loss` in its code): a mixed pair has both of
    its classes.
    """
    return optax.sigmoid_binary_cross_entropy(logits, (targets > 0).astype(jnp.float32)).mean(-1)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("softmax", softmax_cross_entropy, competing=True),
        Loss("sigmoid", sigmoid_cross_entropy),
        Loss("bce", binary_cross_entropy, binary=True),
    )
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
    """Returns the weight of each example: that of its class, or the mean over its classes."""
    if class_weights is None:
        return jnp.ones(labels.shape[0], jnp.float32)
    weights = jnp.asarray(class_weights, jnp.float32)
    if labels.ndim == 1:
        return weights[labels]
    return labels @ weights / jnp.maximum(labels.sum(-1), 1.0)  # padding has no class

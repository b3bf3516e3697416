"""Supervised training: images mixed, labels softened, and a teacher if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.batch import mean_where, names_a_true_class
from vitswin_jax.train.task.distill import Distillation
from vitswin_jax.train.task.losses import LOSSES, Loss, weigh_examples
from vitswin_jax.train.task.mixing import Mixing, mix, smooth_one_hot
from vitswin_jax.train.task.task import Plain

NO_MIXING = Mixing()


@dataclass(frozen=True)
class Supervised(Plain):
    """Classification by labels, and by a teacher's logits where there is a `distillation`.

    Raises UserError if the loss cannot use smoothed labels and `mixing` smooths them.
    """

    mixing: Mixing = NO_MIXING
    loss: Loss = LOSSES["softmax"]
    class_weights: tuple[float, ...] | None = None
    """The weight of an example in the loss, by its class."""
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        if self.loss.binary and self.mixing.label_smoothing:
            raise UserError(
                f"loss.name={self.loss.name!r} counts every target above 0 as 1, so "
                f"augment.label_smoothing={self.mixing.label_smoothing} would set all classes to "
                "1; set it to 0."
            )

    def targets(
        self, key: Key[Array, ""], images: Array, batch: dict[str, Array], model: nn.Module
    ) -> dict[str, Array]:
        """Returns mixed images, their soft targets `target` (b, k), and each example's `weight`."""
        labels, mask = batch["label"], batch["mask"]
        targets = smooth_one_hot(
            labels, model.num_classes, label_smoothing=self.mixing.label_smoothing
        )
        weights = weigh_examples(labels, self.class_weights)
        if self.class_weights is None:
            images, targets = mix(key, images, targets, mask, self.mixing)
        else:  # The weights are one more column, so that they are mixed as the targets are.
            columns = jnp.concatenate([targets, weights[:, None]], axis=-1)
            images, columns = mix(key, images, columns, mask, self.mixing)
            targets, weights = columns[:, :-1], columns[:, -1]
        return {"image": images, "mask": mask, "target": targets, "weight": weights}

    def call(self, key: Key[Array, ""], model: nn.Module) -> dict[str, Any]:
        """Asks for both heads of a student with a distillation token."""
        heads = self.distillation is not None and getattr(model, "dist_token", False)
        return {"rngs": {"dropout": key}, "method": "heads" if heads else None}

    def losses(
        self, outputs: Any, part: dict[str, Array], guide: Params | None
    ) -> tuple[Float[Array, " b"], Float[Array, "b k"]]:
        """Returns each example's weighted loss and the logits; `guide` is the teacher."""
        logits = outputs
        if self.distillation is None:
            losses = self.loss(logits, part["target"])
        else:
            assert guide is not None  # as `distillation` has one
            heads = outputs if outputs.ndim == 3 else outputs[:, None]
            theirs = self.distillation.teacher_logits(guide, part["image"])
            losses = self.distillation.loss(heads, part["target"], theirs, base=self.loss)
            logits = heads.mean(1)
        return losses * part["weight"], logits

    def metrics(self, logits: Array, targets: dict[str, Array]) -> dict[str, Array]:
        """Returns `accuracy`: against a mixed target's heavier class, or any of several labels."""
        right = names_a_true_class(logits, targets["target"])
        return {"accuracy": mean_where(right, targets["mask"])}

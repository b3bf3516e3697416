"""Masked image modelling: the model fills in hidden patches, and no label is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from vitswin_jax.core.types import Params
from vitswin_jax.models.masked import Reconstruction
from vitswin_jax.train.task.task import Plain


@dataclass(frozen=True)
class Masked(Plain):
    """Training of a `MaskedModel`, by the loss that the model itself computes."""

    def targets(
        self, key: Key[Array, ""], images: Array, batch: dict[str, Array], model: nn.Module
    ) -> dict[str, Array]:
        """Returns the images, their own targets, unmixed."""
        return {"image": images, "mask": batch["mask"]}

    def call(self, key: Key[Array, ""], model: nn.Module) -> dict[str, Any]:
        """Gives the model random numbers to draw masks from."""
        dropout_key, mask_key = jax.random.split(key)
        return {"rngs": {"dropout": dropout_key, "mask": mask_key}}

    def losses(
        self, outputs: Reconstruction, part: dict[str, Array], guide: Params | None
    ) -> tuple[Float[Array, " b"], None]:
        """Returns each image's loss over its hidden patches."""
        return outputs.loss, None

    def metrics(self, logits: None, targets: dict[str, Array]) -> dict[str, Array]:
        """Returns nothing: a loss is all that there is without labels."""
        return {}

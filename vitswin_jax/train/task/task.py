"""A kind of training: the part of a train step that differs between them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
from jaxtyping import Array, Float, Key

from vitswin_jax.core.types import Params


@runtime_checkable  # the tests check types where functions are called
class Task(Protocol):
    """One kind of training, as pure data with functions that `jax.jit` traces."""

    def targets(
        self, key: Key[Array, ""], images: Array, batch: dict[str, Array], model: nn.Module
    ) -> dict[str, Array]:
        """Returns the rows that the loss reads: `image`, `mask`, and the task's own targets."""

    def call(self, key: Key[Array, ""], model: nn.Module) -> dict[str, Any]:
        """Returns the arguments of `model.apply` besides parameters and images."""

    def losses(
        self, outputs: Any, part: dict[str, Array], teacher: Params | None
    ) -> tuple[Float[Array, " b"], Float[Array, "b k"] | None]:
        """Returns each example's loss, and the logits of a classifier."""

    def metrics(self, logits: Any, targets: dict[str, Array]) -> dict[str, Array]:
        """Returns metrics of the batch besides `loss` and `grad_norm`."""

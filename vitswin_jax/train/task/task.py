"""A kind of training: the part of a train step that differs between them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int, Key

from vitswin_jax.core.types import Params


@runtime_checkable  # the tests check types where functions are called
class Task(Protocol):
    """One kind of training, as pure data with functions that `jax.jit` traces."""

    def begin(self) -> Any:
        """Returns the arrays that the task keeps from step to step, None without any."""

    def parameters(self, key: Key[Array, ""]) -> Params:
        """Returns the parameters that train beside the model's, {} for none.

        Checkpoints have it, and weights files do not.
        """

    def guide(self, teacher: Params | None, average: Params | None, *, kept: Any, step: Any) -> Any:
        """Returns the input of `losses` besides the outputs, in this step."""

    def targets(
        self, key: Key[Array, ""], images: Array, batch: dict[str, Array], model: nn.Module
    ) -> dict[str, Array]:
        """Returns the rows that the loss reads: `image`, `mask`, and the task's own targets."""

    def forward(
        self, key: Key[Array, ""], model: nn.Module, params: Params, part: dict[str, Array]
    ) -> tuple[Any, Any]:
        """Returns the outputs for rows of the targets, and the losses that the model sows."""

    def losses(
        self, outputs: Any, part: dict[str, Array], guide: Any
    ) -> tuple[Float[Array, " b"], Any]:
        """Returns each example's loss, and arrays of rows: the logits of a classifier."""

    def metrics(self, logits: Any, targets: dict[str, Array]) -> dict[str, Array]:
        """Returns metrics of the batch besides `loss` and `grad_norm`."""

    def train_only(self, updates: Params, step: Int[Array, ""]) -> Params:
        """Returns the updates of a step, zeros for what does not train yet."""

    def keep(self, kept: Any, logits: Any, targets: dict[str, Array]) -> Any:
        """Returns the arrays that the task keeps after a step."""


class Plain:
    """A task that keeps nothing, whose only guide is a teacher, and that trains all at once."""

    def begin(self) -> None:
        """Returns nothing to keep."""

    def parameters(self, key: Key[Array, ""]) -> Params:
        """Returns nothing beside the model's parameters."""
        return {}

    def guide(
        self, teacher: Params | None, average: Params | None, *, kept: None, step: Any
    ) -> Params | None:
        """Returns the teacher's parameters."""
        return teacher

    def call(self, key: Key[Array, ""], model: nn.Module) -> dict[str, Any]:
        """Returns the arguments of `model.apply` besides parameters and images."""
        raise NotImplementedError

    def forward(
        self, key: Key[Array, ""], model: nn.Module, params: Params, part: dict[str, Array]
    ) -> tuple[Any, Any]:
        """Applies the model to the images."""
        return apply_in_training(model, params, part["image"], **self.call(key, model))

    def train_only(self, updates: Params, step: Int[Array, ""]) -> Params:
        """Returns the updates as they are."""
        return updates

    def keep(self, kept: None, logits: Any, targets: dict[str, Array]) -> None:
        """Returns nothing to keep."""


def apply_in_training(
    model: nn.Module, params: Params, images: jax.Array, *more: Any, **how: Any
) -> tuple[Any, Any]:
    """Returns a model's outputs with dropout, and the losses that it sows."""
    return model.apply({"params": params}, images, *more, train=True, mutable=["losses"], **how)

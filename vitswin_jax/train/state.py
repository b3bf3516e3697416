"""The state of training and its creation, each array where it belongs from the start."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from vitswin_jax.train.sharding import state_shardings
from vitswin_jax.types import Params


class TrainState(struct.PyTreeNode):
    """What a step takes and gives back; all of it is in every checkpoint.

    Its shapes and its shardings are trees of the same class.
    """

    step: Any  # int32 (), how many steps have been taken
    params: Params
    opt_state: optax.OptState


def new_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
) -> tuple[TrainState, Any]:
    """Creates a fresh state on the mesh, never whole on one device; returns its shardings too."""

    def init(key: jax.Array) -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return new_state(model.init(key, images)["params"], tx)

    shardings = state_shardings(mesh, jax.eval_shape(init, key))
    return jax.jit(init, out_shardings=shardings)(key), shardings

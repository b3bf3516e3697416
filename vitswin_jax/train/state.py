"""The state of training, and its creation with the final sharding of each array."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from jax.sharding import Mesh

from vitswin_jax.core.types import Params
from vitswin_jax.nn.adapters import without_adapters
from vitswin_jax.train.optim.ema import Ema
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.lora import Lora, add_lora, model_params, split
from vitswin_jax.train.sharding import state_shardings
from vitswin_jax.train.task.task import Task

HEAD_BIASES = r"head(_dist)?/bias"


class TrainState(struct.PyTreeNode):
    """The state that a step takes and returns; all of it is in every checkpoint.

    Its shapes and its shardings are trees of the same class. `params` has the adapters of LoRA
    beside their kernels; the optimizer and the average have only what is trained.
    """

    step: Any  # int32 (), how many steps have been taken
    params: Params
    opt_state: optax.OptState
    ema: Any = None  # the average of the trained parameters, where there is one
    kept: Any = None  # what the task keeps, where it keeps anything (`Task.begin`)


def new_state(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    lora: Lora | None = None,
    ema: Ema | None = None,
    task: Task | None = None,
) -> TrainState:
    """Returns the state before the first step; the average starts from the parameters."""
    trained, _ = split(params, lora)
    average = None if ema is None else jax.tree.map(jnp.copy, trained)
    kept = None if task is None else task.begin()
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(trained), average, kept)


def state_of_copies(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step, of copies: steps overwrite a state's arrays."""
    return jax.jit(lambda params: new_state(jax.tree.map(jnp.copy, params), tx))(params)


def fill_head_biases(params: Params, value: float) -> Params:
    """Returns the parameters with every bias of a head at `value`, the odds a fresh head gives."""

    def fill(path: tuple[Any, ...], leaf: Any) -> Any:
        return jnp.full_like(leaf, value) if re.fullmatch(HEAD_BIASES, "/".join(path)) else leaf

    return path_aware_map(fill, params) if value else params


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    lora: Lora | None = None,
    ema: Ema | None = None,
    task: Task | None = None,
    head_bias: float = 0.0,
    loaded: Params | None = None,
) -> tuple[TrainState, Any]:
    """Creates the state before the first step on the mesh; returns its shardings too.

    Parameters are drawn, with `head_bias` in the heads, or are `loaded`: arrays on the mesh, or
    numpy arrays, of which a device is given its part. Nothing is ever whole on a device where it
    should not be.
    """
    how: dict[str, Any] = {"image_shape": image_shape, "lora": lora, "ema": ema, "task": task}
    init = functools.partial(_init, model=model, tx=tx, head_bias=head_bias, **how)
    shardings = state_shardings(mesh, jax.eval_shape(init, key, None))
    if loaded is not None:
        loaded = _place(loaded, shardings.params)
    create = jax.jit(init, out_shardings=shardings, donate_argnums=1)
    return create(key, loaded), shardings


def state_layout(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    lora: Lora | None = None,
    ema: Ema | None = None,
    task: Task | None = None,
) -> TrainState:
    """Returns the shape, dtype and sharding of every array of a state, which is not created."""
    how: dict[str, Any] = {"image_shape": image_shape, "lora": lora, "ema": ema, "task": task}
    init = functools.partial(_init, model=model, tx=tx, head_bias=0.0, **how)
    shapes = jax.eval_shape(init, jax.random.key(0), None)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def describe_trained(layout: TrainState, *, lora: Lora | None, groups: Groups) -> str:
    """Returns how many of a state's parameters are trained, and how large these are."""
    given, _ = split(layout.params, lora)
    trains = zip(jax.tree.leaves(given), jax.tree.leaves(groups.trained(given)), strict=True)
    trained = [leaf for leaf, is_trained in trains if is_trained]
    ours, all_ = (sum(leaf.size for leaf in jax.tree.leaves(x)) for x in (trained, layout.params))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in trained)
    return f"trains {ours:,} of {all_:,} parameters ({ours / all_:.1%}), {size / 1e6:.1f} MB"


def make_weights(
    *, lora: Lora | None, average: bool, param_shardings: Params
) -> tuple[Callable[[TrainState], Params], Params]:
    """Returns a function to the model's parameters of a state, and their shardings.

    They are the average, where that is wanted, or the parameters, with adapters merged into their
    kernels.
    """

    def weights(state: TrainState) -> Params:
        trained, frozen = split(state.params, lora)
        return model_params(state.ema if average else trained, frozen, lora)

    if lora is None:
        return weights, param_shardings
    own = unflatten_dict(without_adapters(flatten_dict(param_shardings, sep="/")), sep="/")
    return jax.jit(weights, out_shardings=own), own


def _init(
    key: jax.Array,
    loaded: Params | None,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    lora: Lora | None,
    ema: Ema | None,
    task: Task | None,
    head_bias: float,
) -> TrainState:
    init_key, lora_key = (key, key) if lora is None else jax.random.split(key)
    params = loaded
    if params is None:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        params = fill_head_biases(model.init(init_key, images)["params"], head_bias)
    if task is not None:
        params = {**params, **task.parameters(jax.random.fold_in(init_key, 1))}
    if lora is not None:
        params = add_lora(params, lora, lora_key)
    return new_state(params, tx, lora=lora, ema=ema, task=task)


def place_constants(params: Params, mesh: Mesh) -> Params:
    """Lays parameters that are no part of a state, a teacher's, out as a state's would be."""
    return _place(params, state_shardings(mesh, {"params": params})["params"])


def _place(loaded: Params, shardings: Params) -> Params:
    """Gives each device its part of arrays in the host's memory; others lie there already."""
    layout = flatten_dict(shardings)

    def place(path: tuple[Any, ...], leaf: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, layout[path])
        return jax.make_array_from_callback(leaf.shape, layout[path], lambda index: leaf[index])

    return path_aware_map(place, loaded)

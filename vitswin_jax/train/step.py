"""The train step: pure, at top level, the same on one device and on many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from vitswin_jax.core.types import IMAGES, Params
from vitswin_jax.nn.batch import Triple, normalize
from vitswin_jax.nn.forms import compiler_options
from vitswin_jax.nn.quantized import quantized
from vitswin_jax.train.optim.ema import Ema
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.lora import Lora, join, model_params, split
from vitswin_jax.train.parts import Sum, sum_over_parts
from vitswin_jax.train.sharding import (
    batch_sharding,
    constrain_activations,
    host_order,
    platform_of,
    rows_of_hosts,
)
from vitswin_jax.train.state import TrainState
from vitswin_jax.train.task.erasing import Erasing, erase
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.train.task.task import Task

Metrics = dict[str, Array]
Fixed = tuple[Params, Any]
"""What a step reads and does not train: the frozen parameters, and the task's guide."""

NO_ERASING = Erasing()
NO_GROUPS = Groups()
SUPERVISED = Supervised()


@dataclass(frozen=True)
class StepOptions:
    """Options of a train step besides the model and the optimizer."""

    task: Task = SUPERVISED
    aux_weight: float = 0.0  # of the losses that a model sows, such as Swin-MoE's balance
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    accum_steps: int = 1  # parts of a batch; their gradients add up to the batch's own
    accum_at_once: bool = False  # whether no part waits for the one before
    groups: Groups = NO_GROUPS  # says which parameters are frozen and so have no gradient
    lora: Lora | None = None
    ema: Ema | None = None
    keep_logits: bool = False
    erasing: Erasing = NO_ERASING
    quantize: str = "none"  # or one of `quantized.SCHEMES`
    fit: Callable[[Params], Params] | None = None  # parameters to those of the model's image size


def _loss_and_logits(
    trained: Params,
    fixed: Fixed,
    part: dict[str, Array],
    weight: Float[Array, ""],
    key: Array,
    *,
    model: nn.Module,
    options: StepOptions,
) -> tuple[Float[Array, ""], Any]:
    """Returns a part's loss, to which scanned blocks add one number each, and its logits."""
    frozen, guide = fixed
    params = model_params(options.groups.stop_gradients(trained), frozen, options.lora)
    params = params if options.fit is None else options.fit(params)
    outputs, sown = options.task.forward(key, model, params, part)
    losses, logits = options.task.losses(outputs, part, guide)
    aux_weight = options.aux_weight / options.accum_steps
    aux = sum((aux_weight * aux.sum() for aux in jax.tree.leaves(sown)), start=0.0)
    return (losses * part["mask"]).sum() * weight + aux, logits


def _gradients(
    trained: Params,
    fixed: Fixed,
    batch: dict[str, Array],
    key: Array,
    *,
    model: nn.Module,
    options: StepOptions,
) -> tuple[Array, Any, Params]:
    """Returns loss, logits and gradients of `trained`; each device has rows of every part."""
    grad = jax.value_and_grad(
        functools.partial(_loss_and_logits, model=model, options=options), has_aux=True
    )
    weight = 1.0 / jnp.maximum(batch["mask"].sum(), 1.0)
    if options.accum_steps == 1:
        (loss, logits), grads = grad(trained, fixed, batch, weight, key)
        return loss, logits, grads

    n = options.accum_steps
    parts = jax.tree.map(lambda x: rearrange(x, "(b part) ... -> part b ...", part=n), batch)

    def of_part(trained: Params, part: tuple[dict[str, Array], Array]) -> tuple[Sum, Any]:
        (loss, logits), grads = grad(trained, fixed, part[0], weight, part[1])
        return (loss, grads), logits

    (loss, grads), logits = sum_over_parts(
        of_part, trained, (parts, jax.random.split(key, n)), at_once=options.accum_at_once
    )
    return loss, jax.tree.map(lambda x: rearrange(x, "part b ... -> (b part) ..."), logits), grads


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    teacher: Params | None = None,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    options: StepOptions,
) -> tuple[TrainState, Metrics]:
    """Takes one step; its randomness is a function of (key, state.step).

    `teacher` has the teacher's parameters if the task has a distillation. Returns the new state and
    float32 metrics of the batch before the update: `loss`, `grad_norm` before clipping, and those
    of the task.
    """
    erase_key, task_key, model_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
    shown = {
        name: normalize(batch[name], mean=options.mean, std=options.std)
        for name in IMAGES
        if name in batch
    }
    images = shown["image"]
    if options.erasing.erase_prob:
        images = erase(erase_key, images, options.erasing)
    targets = options.task.targets(task_key, images, {**batch, **shown}, model)

    trained, frozen = split(state.params, options.lora)
    average = state.ema
    mean = None if average is None else model_params(average, frozen, options.lora)
    guide = options.task.guide(teacher, mean, kept=state.kept, step=state.step)
    loss, logits, grads = _gradients(
        trained, (frozen, guide), targets, model_key, model=model, options=options
    )
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, options.task.train_only(updates, state.step))
    if options.ema is not None:
        average = options.ema.update(average, trained, state.step)
    kept = options.task.keep(state.kept, logits, targets)

    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    metrics |= options.task.metrics(logits, targets)
    if options.keep_logits:
        metrics["logits"] = logits
    return TrainState(state.step + 1, join(trained, frozen), opt_state, average, kept), metrics


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    options: StepOptions,
    mesh: Mesh,
    shardings: Any,
    teacher_shardings: Params | None = None,
) -> jax.stages.Wrapped:
    """Compiles `train_step` for a mesh; the state given to it is donated.

    It takes state, batch and key and, where there are shardings for them, a teacher's parameters:
    an argument, for constants would be compiled in.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    step = constrain_activations(mesh)(train_step)
    if options.quantize != "none":
        step = quantized(options.quantize)(step)
    teacher = () if teacher_shardings is None else (teacher_shardings,)
    return jax.jit(
        functools.partial(step, model=model, tx=tx, options=options),
        in_shardings=(shardings, batch_sharding(mesh), replicated, *teacher),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
        compiler_options=compiler_options(platform_of(mesh)),
    )


def compile_for_hosts(
    step: Callable[[Params, dict[str, Array]], Metrics], *, mesh: Mesh, param_shardings: Any
) -> Callable[[Params, dict[str, Array]], Metrics]:
    """Compiles a function of parameters and a batch; what it returns is whole on every device.

    Its rows are in the data's order: the rows of one host after those of the host before.
    """

    def in_order(params: Params, batch: dict[str, Array]) -> Metrics:
        order = host_order(rows_of_hosts(mesh, len(batch["mask"])))
        given = constrain_activations(mesh)(step)(params, batch)
        return {key: value[order] if value.ndim else value for key, value in given.items()}

    return jax.jit(
        in_order,
        in_shardings=(param_shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(platform_of(mesh)),
    )

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

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.batch import Triple, mean_where, names_a_true_class, normalize
from vitswin_jax.train.optim.ema import Ema
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.lora import Lora, join, model_params, split
from vitswin_jax.train.sharding import (
    batch_sharding,
    constrain_activations,
    host_order,
    rows_of_hosts,
)
from vitswin_jax.train.state import TrainState
from vitswin_jax.train.task.distill import Distillation
from vitswin_jax.train.task.erasing import Erasing, erase
from vitswin_jax.train.task.losses import (
    Loss,
    binary_cross_entropy,
    softmax_cross_entropy,
    weigh_examples,
)
from vitswin_jax.train.task.mixing import Mixing, mix, smooth_one_hot

Metrics = dict[str, Array]
Fixed = tuple[Params, Params | None]
"""What a step reads and does not train: frozen parameters, and a teacher's."""


NO_ERASING = Erasing()
NO_MIXING = Mixing()
NO_GROUPS = Groups()


@dataclass(frozen=True)
class StepOptions:
    """What a train step does besides the model and the optimizer."""

    mixing: Mixing = NO_MIXING
    loss: Loss = softmax_cross_entropy
    class_weights: tuple[float, ...] | None = None  # of examples in the loss, by their classes
    aux_weight: float = 0.0  # of the losses that a model sows, such as Swin-MoE's balance
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    accum_steps: int = 1  # a batch is taken in so many parts, whose gradients add up to its own
    groups: Groups = NO_GROUPS  # of which a step asks what is frozen, and so has no gradient
    distillation: Distillation | None = None
    lora: Lora | None = None
    ema: Ema | None = None
    keep_logits: bool = False
    erasing: Erasing = NO_ERASING
    masked: bool = False  # the model is a `MaskedModel`: labels are not read, nothing is mixed

    def __post_init__(self) -> None:
        if self.loss is binary_cross_entropy and self.mixing.label_smoothing:
            raise UserError(
                "loss.name='bce' takes every target above 0 as there, so augment.label_smoothing="
                f"{self.mixing.label_smoothing} would make every class so; set it to 0."
            )


def _masked_loss(
    trained: Params,
    fixed: Fixed,
    part: dict[str, Array],
    weight: Float[Array, ""],
    key: Array,
    *,
    model: nn.Module,
    options: StepOptions,
) -> tuple[Float[Array, ""], None]:
    """As `_loss_and_logits`, of a model that fills in what it is not shown; there are no logits."""
    dropout_key, mask_key = jax.random.split(key)
    out, sown = model.apply(
        {"params": model_params(options.groups.stop_gradients(trained), fixed[0], options.lora)},
        part["image"],
        train=True,
        rngs={"dropout": dropout_key, "mask": mask_key},
        mutable=["losses"],
    )
    return (out.loss * part["mask"]).sum() * weight + _aux_loss(sown, options), None


def _aux_loss(sown: Any, options: StepOptions) -> Array | float:
    """Returns what a model adds to a part's loss; scanned blocks sow one number each."""
    weight = options.aux_weight / options.accum_steps
    return sum((weight * aux.sum() for aux in jax.tree.leaves(sown)), start=0.0)


def _loss_and_logits(
    trained: Params,
    fixed: Fixed,
    part: dict[str, Array],
    weight: Float[Array, ""],
    key: Array,
    *,
    model: nn.Module,
    options: StepOptions,
) -> tuple[Float[Array, ""], Float[Array, "b k"]]:
    frozen, teacher = fixed
    distillation = options.distillation
    by_heads = distillation is not None and getattr(model, "dist_token", False)
    logits, sown = model.apply(
        {"params": model_params(options.groups.stop_gradients(trained), frozen, options.lora)},
        part["image"],
        train=True,
        rngs={"dropout": key},
        mutable=["losses"],
        method="heads" if by_heads else None,
    )
    if distillation is None:
        losses = options.loss(logits, part["target"])
    else:
        heads = logits if by_heads else logits[:, None]
        theirs = distillation.teacher_logits(
            teacher, part["image"], mean=options.mean, std=options.std
        )
        losses = distillation.loss(heads, part["target"], theirs, base=options.loss)
        logits = heads.mean(1)
    losses = losses * part["weight"]
    return (losses * part["mask"]).sum() * weight + _aux_loss(sown, options), logits


def _gradients(
    trained: Params,
    fixed: Fixed,
    batch: dict[str, Array],
    key: Array,
    *,
    model: nn.Module,
    options: StepOptions,
) -> tuple[Array, Array | None, Params]:
    """Returns loss, logits and what is trained's gradients; a device has rows of every part."""
    loss_of = _masked_loss if options.masked else _loss_and_logits
    grad = jax.value_and_grad(
        functools.partial(loss_of, model=model, options=options), has_aux=True
    )
    weight = 1.0 / jnp.maximum(batch["mask"].sum(), 1.0)
    if options.accum_steps == 1:
        (loss, logits), grads = grad(trained, fixed, batch, weight, key)
        return loss, logits, grads

    n = options.accum_steps
    parts = jax.tree.map(lambda x: rearrange(x, "(b part) ... -> part b ...", part=n), batch)

    def add(total: Any, part: tuple[dict[str, Array], Array]) -> tuple[Any, Array]:
        (loss, logits), grads = grad(trained, fixed, part[0], weight, part[1])
        return jax.tree.map(jnp.add, total, (loss, grads)), logits

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    (loss, grads), logits = jax.lax.scan(add, zero, (parts, jax.random.split(key, n)))
    if logits is not None:
        logits = rearrange(logits, "part b k -> (b part) k")
    return loss, logits, grads


def _targets(
    key: Array,
    batch: dict[str, Array],
    images: Array,
    num_classes: int,
    options: StepOptions,
) -> dict[str, Array]:
    """Returns mixed images, what they should be named, and what each weighs."""
    targets = smooth_one_hot(
        batch["label"], num_classes, label_smoothing=options.mixing.label_smoothing
    )
    weights = weigh_examples(batch["label"], options.class_weights)
    if options.class_weights is None:
        images, targets = mix(key, images, targets, batch["mask"], options.mixing)
    else:  # as one more column, so that weights are mixed as the targets are
        columns = jnp.concatenate([targets, weights[:, None]], axis=-1)
        images, columns = mix(key, images, columns, batch["mask"], options.mixing)
        targets, weights = columns[:, :-1], columns[:, -1]
    return {"image": images, "target": targets, "weight": weights}


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
    """Takes one step; chance is a function of (key, state.step).

    `teacher` has the teacher's parameters where `options` has a distillation. Returns the new state
    and float32 metrics of the batch before the update: `loss`, `accuracy` (against the heavier
    class of mixed targets, any class of several) where there are labels, `grad_norm` before
    clipping.
    """
    erase_key, mix_key, model_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
    images = normalize(batch["image"], mean=options.mean, std=options.std)
    images = erase(erase_key, images, options.erasing)
    given = {"image": images, "mask": batch["mask"]}
    if not options.masked:
        given |= _targets(mix_key, batch, images, model.num_classes, options)
    trained, frozen = split(state.params, options.lora)
    loss, logits, grads = _gradients(
        trained, (frozen, teacher), given, model_key, model=model, options=options
    )
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    average = state.ema
    if options.ema is not None:
        average = options.ema.update(average, trained, state.step)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    if not options.masked:
        right = names_a_true_class(logits, given["target"])
        metrics["accuracy"] = mean_where(right, batch["mask"])
    if options.keep_logits:
        metrics["logits"] = logits
    return TrainState(state.step + 1, join(trained, frozen), opt_state, average), metrics


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
    teacher = () if teacher_shardings is None else (teacher_shardings,)
    return jax.jit(
        functools.partial(step, model=model, tx=tx, options=options),
        in_shardings=(shardings, batch_sharding(mesh), replicated, *teacher),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )


def compile_for_hosts(
    step: Callable[[Params, dict[str, Array]], Metrics], *, mesh: Mesh, param_shardings: Any
) -> Callable[[Params, dict[str, Array]], Metrics]:
    """Compiles a function of parameters and a batch; what it returns is whole on every device.

    Its rows are in the data's order, each host's behind those of the host before.
    """

    def in_order(params: Params, batch: dict[str, Array]) -> Metrics:
        order = host_order(rows_of_hosts(mesh, len(batch["mask"])))
        given = constrain_activations(mesh)(step)(params, batch)
        return {key: value[order] if value.ndim else value for key, value in given.items()}

    return jax.jit(
        in_order,
        in_shardings=(param_shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

"""Optimizers, from the keys of `config.optim`; docs/optim.md has each one's equations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from vitswin_jax.core.choices import Faults, one_of, own_keys
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.scan import row_paths
from vitswin_jax.train.optim.groups import Groups, decay_mask, path_of
from vitswin_jax.train.optim.muon import muon_directions
from vitswin_jax.train.optim.schedules import make_schedule

__all__ = ["OPTIMIZERS", "Optim", "decay_mask", "make_optim", "make_schedule", "make_tx"]

DTYPES = ("float32", "bfloat16")
SCHEDULE_KEYS = tuple(inspect.signature(make_schedule).parameters)

# A rule turns gradients into a direction, of which the rate makes the step; its keywords are the
# keys of `config.optim` that it reads, their defaults its own.


def _adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, momentum_dtype: str = "float32"
) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=momentum_dtype)


def _adafactor(
    *,
    b2: float = 0.999,
    eps: float = 1e-30,
    momentum: float = 0.9,
    momentum_dtype: str = "bfloat16",
) -> optax.GradientTransformation:
    """big_vision's: no rate relative to the parameters, and second moments that forget by `b2`."""
    rms = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        epsilon=eps,
        decay_rate_fn=lambda i, rate: jnp.minimum(b2, 1.0 - (i + 1.0) ** -rate),
    )
    ema = optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype)
    return per_block(optax.chain(rms, ema))


def _lion(
    *, b1: float = 0.9, b2: float = 0.99, momentum_dtype: str = "float32"
) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1, b2, mu_dtype=momentum_dtype)


def _sgd(
    *, momentum: float = 0.9, nesterov: bool = False, momentum_dtype: str = "float32"
) -> optax.GradientTransformation:
    if not momentum:
        return optax.identity()
    return optax.trace(momentum, nesterov, accumulator_dtype=momentum_dtype)


def per_block(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a rule that needs whole arrays to each row of a stack separately.

    Scanned blocks are then updated as the same blocks in a loop are.
    """

    def split(params: Params) -> optax.GradientTransformation:
        def label(path: tuple[Any, ...], leaf: Any) -> str:
            rows = row_paths(path_of(path), np.shape(leaf))
            return "single" if rows is None else f"{len(rows)} rows"

        labels = jax.tree_util.tree_map_with_path(label, params)
        stacked = optax.GradientTransformation(jax.vmap(tx.init), jax.vmap(tx.update))
        kinds = sorted(set(jax.tree.leaves(labels)))
        return optax.partition({k: tx if k == "single" else stacked for k in kinds}, labels)

    return optax.GradientTransformation(
        lambda params: split(params).init(params),
        lambda updates, state, params=None: split(updates).update(updates, state, params),
    )


@dataclass(frozen=True)
class Optimizer:
    """An update rule, and the factor of its weight decay.

    `decay` is "gradient": the decay is added to the gradient and goes through the rule (coupled);
    "rate": it is times the parameter's learning rate, multiplier included (arXiv:1711.05101 as in
    PyTorch); or "schedule": times the schedule over its peak, whatever the rate (big_vision).
    """

    rule: Callable[..., optax.GradientTransformation]
    decay: str
    trust_ratio: bool = False  # the direction, decay included, takes on the parameter's norm


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(_adam, "rate"),
    "sgd": Optimizer(_sgd, "gradient"),
    "big_vision_adam": Optimizer(_adam, "schedule"),
    "big_vision_adafactor": Optimizer(_adafactor, "schedule"),
    "lamb": Optimizer(functools.partial(_adam, eps=1e-6), "rate", trust_ratio=True),
    "lion": Optimizer(_lion, "rate"),
    "muon": Optimizer(muon_directions, "rate"),
}


def make_tx(
    schedule: optax.Schedule,
    *,
    name: str = "adamw",
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    groups: Groups | None = None,
    peak_lr: float | None = None,
    **own: Any,
) -> optax.GradientTransformation:
    """Returns the optimizer: gradients are clipped by their global norm, then `name` updates.

    The rule reads its own of `b1 b2 eps momentum nesterov momentum_dtype consistent_rms`, and has
    its own defaults for what is None. `groups` say what trains and decays, and at what rate; frozen
    parameters have no state. big_vision's need the schedule's `peak_lr` to decay by.
    Raises UserError for an unknown name and for keys that it does not read; `init` also for groups
    that do not fit the parameters.
    """
    optimizer, groups = one_of("optim.name", name, OPTIMIZERS), groups or Groups()
    faults, norm = Faults(), max_grad_norm
    faults.need(weight_decay >= 0, f"optim.weight_decay={weight_decay} must be 0 or more")
    faults.need(norm is None or norm > 0, f"optim.max_grad_norm={norm} must be above 0")
    faults.check()
    own = own_keys(f"name={name!r}", optimizer.rule, own)
    if "momentum_dtype" in own:
        one_of("optim.momentum_dtype", own["momentum_dtype"], DTYPES)
    if optimizer.decay == "schedule" and weight_decay:
        if not peak_lr:
            raise UserError(f"optim.name={name!r} needs a peak_lr above 0 for its weight_decay.")
        weight_decay /= peak_lr
    rule = optimizer.rule(**own)
    decay = add_decay(weight_decay, groups) if weight_decay else None
    mults = scale_rates(groups) if groups.lr_mults or groups.layer_decay else None
    parts = [
        drop_gradients(groups) if groups.freezes else None,
        None if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm),
        decay if optimizer.decay == "gradient" else None,
        train_alone(rule, groups) if groups.freezes else rule,
        mults if optimizer.decay == "schedule" else None,
        decay if optimizer.decay != "gradient" else None,
        per_block(optax.scale_by_trust_ratio()) if optimizer.trust_ratio else None,
        mults if optimizer.decay != "schedule" else None,
        optax.scale_by_learning_rate(schedule),
    ]
    tx = optax.chain(*(part for part in parts if part is not None))

    def init(params: Params) -> optax.OptState:
        groups.check(params)
        return tx.init(params)

    return optax.GradientTransformation(init, tx.update)


class OwnState(NamedTuple):
    """The state of a user's optimizer, at a path of its own for its sharding."""

    own: optax.OptState


def own_tx(tx: Any, groups: Groups) -> optax.GradientTransformation:
    """Returns a user's optimizer, which is given, as its state, only what trains."""
    rule = train_alone(tx, groups) if groups.freezes else tx

    def init(params: Params) -> OwnState:
        groups.check(params)
        return OwnState(rule.init(params))

    def update(
        updates: Params, state: OwnState, params: Params | None = None
    ) -> tuple[Params, OwnState]:
        updates, own = rule.update(updates, state.own, params)
        return updates, OwnState(own)

    return optax.GradientTransformation(init, update)


def add_decay(weight_decay: float, groups: Groups) -> optax.GradientTransformation:
    """Adds `weight_decay`, times each parameter's own factor, times what trains."""

    def decayed(update: ArrayLike, param: ArrayLike, scale: Any, trains: bool) -> ArrayLike:
        return update + weight_decay * scale * param if trains and np.any(scale) else update

    return optax.stateless(
        lambda updates, params: jax.tree.map(
            decayed, updates, params, groups.decay_scales(params), groups.trained(params)
        )
    )


def scale_rates(groups: Groups) -> optax.GradientTransformation:
    """Multiplies each update by its parameter's factor of the rate."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, updates, groups.lr_scales(updates))
    )


def drop_gradients(groups: Groups) -> optax.GradientTransformation:
    """Makes frozen parameters' gradients zero, so that a global norm does not see them."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda update, trains: update if trains else jnp.zeros_like(update),
            updates,
            groups.trained(updates),
        )
    )


def train_alone(rule: optax.GradientTransformation, groups: Groups) -> optax.GradientTransformation:
    """Gives the rule, and so its state, what trains; all other updates are zeros."""

    def labels(params: Params) -> Params:
        return jax.tree.map(
            lambda trains: "trained" if trains else "frozen", groups.trained(params)
        )

    return optax.partition({"trained": rule, "frozen": optax.set_to_zero()}, labels)


class Optim(NamedTuple):
    """The schedule, the optimizer and the parameter groups of `config.optim`."""

    schedule: optax.Schedule
    tx: optax.GradientTransformation
    groups: Groups


def make_optim(section: Mapping[str, Any]) -> Optim:
    """Returns schedule, optimizer and groups of the keys of `config.optim`, every count in steps.

    Raises UserError for what does not fit, and TypeError for a key that nothing reads.
    """
    section = {key: value for key, value in section.items() if value is not None}
    plan = {key: section.pop(key) for key in SCHEDULE_KEYS if key in section}
    schedule = make_schedule(**plan)
    keys = [field.name for field in fields(Groups) if field.name in section]
    groups = Groups(**{key: section.pop(key) for key in keys})
    tx = make_tx(schedule, groups=groups, peak_lr=plan["peak_lr"], **section)
    return Optim(schedule, tx, groups)

"""Schedules, weight-decay masks and optimizers, from the keys of `config.optim`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

import optax
from flax.traverse_util import flatten_dict, path_aware_map

from vitswin_jax.types import Params, UserError

DECAY_RULES: tuple[tuple[str, bool], ...] = (
    # (pattern of the whole path, decayed?), the first that matches. As all originals: kernels only.
    (r".*(relative_position_bias_table|logit_scale|cpb_mlp/.*)", False),
    (r"(.*/)?(cls_token|dist_token|reg_token|pos_embed(_[xy])?|absolute_pos_embed|latent)", False),
    (r".*/router/(proj/kernel|sim_matrix|temperature)", False),  # Swin-MoE's cosine router
    (r"(.*/)?(bias|[qv]_bias|fc[12]_bias|scale|gamma)", False),
    (r"(.*/)?(kernel|fc[12]_kernel|lora_[ab])", True),  # fc1 and fc2: of Swin-MoE's experts
)


def _first_match(path: str) -> bool | None:
    return next((decayed for pattern, decayed in DECAY_RULES if re.fullmatch(pattern, path)), None)


def decay_mask(params: Params) -> Params:
    """Returns a tree of booleans: which parameters weight decay shrinks (`DECAY_RULES`).

    Raises ValueError that lists every path no rule covers.
    """
    paths = flatten_dict(params, sep="/")
    uncovered = [path for path in paths if _first_match(path) is None]
    if uncovered:
        raise ValueError(f"no rule of DECAY_RULES covers {', '.join(uncovered)}.")
    return path_aware_map(lambda path, _: _first_match("/".join(path)), params)


def _cosine(peak: float, end: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=end / peak if peak else 0.0)


def _linear(peak: float, end: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, end, max(steps, 1))


def _constant(peak: float, end: float, steps: int) -> optax.Schedule:
    del end, steps
    return optax.constant_schedule(peak)


SCHEDULES: dict[str, Callable[[float, float, int], optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
}


def make_schedule(
    *,
    schedule: str,
    peak_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0.

    Linear from `warmup_lr` to `peak_lr` over `warmup_steps`, then as `schedule` says over the steps
    that remain, to `end_lr`. Raises UserError for an unknown schedule or a warmup that never ends.
    """
    _check_choice("schedule", schedule, SCHEDULES)
    if warmup_steps and warmup_steps >= total_steps:
        raise UserError(
            f"optim: the warmup of {warmup_steps} steps must be shorter than the run of "
            f"{total_steps}."
        )
    decay = SCHEDULES[schedule](peak_lr, end_lr, total_steps - warmup_steps)
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(warmup_lr, peak_lr, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def _adamw(
    lr: optax.Schedule, *, weight_decay: float, b1: float, b2: float, eps: float, **_: object
) -> optax.GradientTransformation:
    return optax.adamw(lr, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


def _sgd(
    lr: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    momentum_dtype: str,
    **_: object,
) -> optax.GradientTransformation:
    sgd = optax.sgd(lr, momentum, nesterov, accumulator_dtype=momentum_dtype)
    if not weight_decay:
        return sgd
    # Coupled: the decay passes through the momentum, as in PyTorch's SGD.
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=decay_mask), sgd)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}


def make_tx(
    schedule: optax.Schedule,
    *,
    name: str = "adamw",
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.9,
    nesterov: bool = False,
    momentum_dtype: str = "float32",
) -> optax.GradientTransformation:
    """Returns the optimizer: gradients are clipped by their global norm, then `name` updates.

    "adamw" decouples the decay and multiplies it by the rate (arXiv:1711.05101), with `b1 b2 eps`;
    "sgd" has `momentum`, kept in `momentum_dtype`. Kernels alone decay. Raises UserError for an
    unknown name.
    """
    _check_choice("name", name, OPTIMIZERS)
    tx = OPTIMIZERS[name](
        schedule,
        weight_decay=weight_decay,
        b1=b1,
        b2=b2,
        eps=eps,
        momentum=momentum,
        nesterov=nesterov,
        momentum_dtype=momentum_dtype,
    )
    if max_grad_norm is None:
        return tx
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), tx)


def _check_choice(key: str, value: str, known: Iterable[str]) -> None:
    known = list(known)
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"optim.{key}={value!r} is none of {', '.join(known)}{hint}")

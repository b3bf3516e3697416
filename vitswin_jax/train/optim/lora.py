"""Low-rank adapters: kernels stay as they are, and W + α / r · A B is trained beside them (LoRA).

Pure functions of a tree of parameters, in loop or in scan layout: `add_lora` puts `lora_a` and
`lora_b` beside each adapted `kernel`, `merge_lora` returns the tree that the model takes and that
files have, and `split` and `join` divide what is trained from what is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.linen.initializers import variance_scaling
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.adapters import A, B, merge_adapters
from vitswin_jax.nn.params import PROJECTIONS, facts
from vitswin_jax.nn.scan import is_stacked

# U(-1/√n, 1/√n) for n inputs, as the authors' code draws A; B is zero.
_draw_a = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0, out_axis=1)


@dataclass(frozen=True)
class Lora:
    """The adapted kernels, and the parameters trained besides (arXiv:2106.09685, section 4).

    `kernels` and `train` are expressions for whole paths of parameters: those that get adapters,
    and those that are trained themselves, such as the head. Raises UserError that lists what is
    wrong.
    """

    rank: int
    alpha: float
    kernels: str
    train: str

    def __post_init__(self) -> None:
        faults = Faults()
        faults.need(self.rank > 0, f"rank={self.rank} must be above 0")
        faults.need(self.alpha > 0, f"alpha={self.alpha} must be above 0")
        for field in ("kernels", "train"):
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                faults.append(f"{field}={getattr(self, field)!r} is no expression ({error})")
        faults.check("lora: ")

    @property
    def scale(self) -> float:
        """The factor of the product of A and B."""
        return self.alpha / self.rank


def make_lora(*, rank: int | None, alpha: float, kernels: str, train: str) -> Lora | None:
    """Returns the adapters that `config.lora` asks for, None where it has no rank."""
    return None if rank is None else Lora(rank, alpha, kernels, train)


def add_lora(params: Params, lora: Lora, key: Key[Array, ""]) -> Params:
    """Returns the parameters with adapters beside the kernels that `lora.kernels` fits.

    B is zero, so that the model is still the same. Raises UserError where no parameter fits, or one
    that cannot be adapted.
    """
    flat = flatten_dict(params, sep="/")
    chosen = [path for path in sorted(flat) if re.fullmatch(lora.kernels, path)]
    axes = {path: facts(path).inputs("lora") for path in chosen}
    other = [path for path, count in axes.items() if count is None]
    if other or not chosen:
        wrong = f"matches {', '.join(other)}, which cannot have adapters"
        what = wrong if other else "matches no parameter"
        raise UserError(f"lora.kernels={lora.kernels!r} {what}; parameters are {_some(flat)}.")
    if lora.train and not any(re.fullmatch(lora.train, path) for path in flat):
        raise UserError(
            f"lora.train={lora.train!r} matches no parameter; parameters are {_some(flat)}."
        )
    for path, path_key in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        kernel, stem = flat[path], path.removesuffix("kernel")
        depth, shape = _divide(path, kernel.shape)
        inputs, outputs = shape[: axes[path]], shape[axes[path] :]

        # Each block's own, by its own number of inputs.
        blocks = jax.random.split(path_key, math.prod(depth))
        drawn = [_draw_a(block, (math.prod(inputs), lora.rank), jnp.float32) for block in blocks]
        flat[stem + A] = jnp.stack(drawn).reshape(*depth, *inputs, lora.rank)
        flat[stem + B] = jnp.zeros((*depth, lora.rank, *outputs), jnp.float32)
    return unflatten_dict(flat, sep="/")


def merge_lora(params: Params, lora: Lora) -> Params:
    """Returns the model's own parameters: kernels are W + α / r · A B, and adapters are gone."""
    return merge_adapters(params, lora.scale)


def split(params: Params, lora: Lora | None) -> tuple[Params, Params]:
    """Returns (trained, frozen) parameters; without `lora` all are trained.

    Those that distillation trains beside the model always are.
    """
    if lora is None:
        return params, {}
    flat = flatten_dict(params, sep="/")
    trained = {
        path: leaf
        for path, leaf in flat.items()
        if path.rpartition("/")[2] in (A, B)
        or path.startswith(f"{PROJECTIONS}/")
        or re.fullmatch(lora.train, path)
    }
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(trained: Params, frozen: Params) -> Params:
    """Returns all parameters; the inverse of `split`."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained)) if frozen else trained


def model_params(trained: Params, frozen: Params, lora: Lora | None) -> Params:
    """Returns the model's parameters from those that `split` divided."""
    params = join(trained, frozen)
    return params if lora is None else merge_lora(params, lora)


def _divide(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axis of scanned blocks, () where there is none, and one block's axes."""
    count = int(is_stacked(path))
    return shape[:count], shape[count:]


def _some(flat: Mapping[str, object]) -> str:
    paths = [path for path in sorted(flat) if facts(path).inputs("lora")]
    return ", ".join([*paths[:3], "..."])

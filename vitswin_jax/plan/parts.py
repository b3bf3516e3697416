"""Costs of a model's parts, read from its traced programs: nothing is computed or compiled.

A part is what its parameters are called: `patch_embed`, `block_3`, `stage_1/block_0`,
`stage_1/downsample`, `norm`, `head`; `images` is the input, and `rest` what lies between the
modules, with the parameters that no module owns, such as the class token and position embeddings.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend import core

from vitswin_jax.core.types import Params
from vitswin_jax.nn.layers import pair
from vitswin_jax.plan.cost import count_equation

IMAGES, REST = "images", "rest"


@dataclass(frozen=True)
class Part:
    """The cost of a part of a model, or of a run of equal parts, for one image."""

    name: str
    parameters: int
    multiply_adds: int  # of the forward pass
    activation_bytes: int
    """What the forward pass keeps for the backward pass: see `describe_parts`."""


def describe_parts(model: nn.Module) -> tuple[Part, ...]:
    """Returns the parts of a model, in the order in which an image passes them, `rest` last.

    Activation memory is the size of the distinct arrays that `jax.vjp` of the model hands from the
    forward to the backward pass and that grow with the batch: not parameters, their casts, masks.
    It is that of one image, in the model's `dtype`, with `train=False` (no dropout), and counted
    where it is made. Compiled, a step needs less where XLA recomputes cheap elementwise work
    instead, and more while it runs, for gradients and temporary arrays.

    The sums over the parts are those of `cost.describe`. `model` must be in loop layout.
    """
    height, width = pair(model.img_size)
    images = jax.ShapeDtypeStruct((1, height, width, model.in_chans), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(lambda key, x: model.init(key, x, train=False), key, images)["params"]

    def forward(params: Params, images: Any) -> Any:
        return model.apply({"params": params}, images, train=False)

    def kept(params: Params, images: Any) -> Any:
        return jax.vjp(lambda params: forward(params, images), params)[1]

    part_of = _make_part_of(params)
    multiply_adds: Counter[str] = Counter()
    for equation in jax.make_jaxpr(forward)(params, images).jaxpr.eqns:
        multiply_adds[part_of(_scopes(equation))] += count_equation(equation)
    kept_bytes = _kept_bytes(jax.make_jaxpr(kept)(params, images).jaxpr, part_of)
    parameters: Counter[str] = Counter()
    for path, leaf in flatten_dict(params).items():
        parameters[part_of(path)] += math.prod(leaf.shape)
    # Equations come in the program's order, parameters in the alphabet's.
    names = dict.fromkeys([IMAGES, *multiply_adds, *parameters, *kept_bytes])
    ordered = [*(name for name in names if name != REST), REST]
    return tuple(
        Part(name, parameters[name], multiply_adds[name], kept_bytes[name]) for name in ordered
    )


def merge_equal(parts: Iterable[Part]) -> list[Part]:
    """Returns parts with each run of equal blocks as one: "block_0 ... block_11", with its sums."""
    merged = []
    for _, group in itertools.groupby(parts, key=_kind):
        run = list(group)
        first, last = run[0].name, run[-1].name.rpartition("/")[2]
        sums = map(sum, zip(*(astuple(part)[1:] for part in run), strict=True))
        merged.append(Part(first if len(run) == 1 else f"{first} ... {last}", *sums))
    return merged


def _kind(part: Part) -> tuple[Any, ...]:
    return re.sub(r"block_\d+$", "block", part.name), *astuple(part)[1:]


def _make_part_of(params: Params) -> Callable[[Sequence[str]], str]:
    """Returns a function from the names on the way to an equation or a leaf to its part."""
    inside = {
        name: set(value) if name.startswith("stage_") else set()
        for name, value in params.items()
        if hasattr(value, "keys")
    }

    def part_of(names: Sequence[str]) -> str:
        for place, name in enumerate(names):
            if name in inside:
                below = (other for other in names[place + 1 :] if other in inside[name])
                return "/".join([name, *itertools.islice(below, 1)])
        return REST

    return part_of


def _scopes(equation: core.JaxprEqn) -> list[str]:
    """Returns the names of the modules and methods that an equation was traced in."""
    return str(equation.source_info.name_stack).split("/")


def _kept_bytes(jaxpr: core.Jaxpr, part_of: Callable[[Sequence[str]], str]) -> Counter[str]:
    """Returns the size of what a program returns and its last argument decides, by its maker."""
    images = jaxpr.invars[-1]
    part = {images: IMAGES}
    for equation in jaxpr.eqns:
        if any(not isinstance(v, core.Literal) and v in part for v in equation.invars):
            part |= dict.fromkeys(equation.outvars, part_of(_scopes(equation)))
    kept: Counter[str] = Counter()
    for variable in dict.fromkeys(v for v in jaxpr.outvars if not isinstance(v, core.Literal)):
        if variable in part:
            array: Any = variable.aval  # which JAX's type gives no shape
            kept[part[variable]] += math.prod(array.shape) * array.dtype.itemsize
    return kept

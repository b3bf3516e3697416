"""Parameters and multiply-adds, counted from the traced program: nothing is computed or compiled.

`python -m vitswin_jax.plan.cost` counts every variant and writes `variant_costs.txt`.

The counts do not depend on a device. "Multiply-adds" is what the papers' tables call FLOPs: one
for each product in a matrix multiplication or convolution; normalisation, softmax and other
elementwise work is left out, as it is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from vitswin_jax.core.atomic import replacing
from vitswin_jax.models.registry import create_model, model_names
from vitswin_jax.nn.layers import pair
from vitswin_jax.plan.variant_costs import TABLE, Cost


def multiply_adds(fn: Callable[..., Any], *args: Any) -> int:
    """Returns the number of multiply-adds of `fn(*args)`; arguments may be ShapeDtypeStructs.

    A loop counts once per turn, a kernel once per program, a branch as its dearest arm, and a
    convolution counts its padding but not the zeros that dilation inserts. Raises ValueError for
    products whose number the trace does not show: in a `while_loop`, whose turns depend on values,
    or in a shard_map.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def describe(model: nn.Module) -> Cost:
    """Returns the parameter count of a model and its multiply-adds for one image of its size.

    Tracing a model with `scan=True` gives the same numbers sooner.
    """
    height, width = pair(model.img_size)
    key = jax.eval_shape(jax.random.key, 0)
    images = jax.ShapeDtypeStruct((1, height, width, model.in_chans), jnp.float32)
    # One trace gives both: drawing initial values takes no products.
    program, (_, variables) = jax.make_jaxpr(
        partial(model.init_with_output, train=False), return_shape=True
    )(key, images)
    return Cost(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])),
        multiply_adds=_count(program.jaxpr),
        img_size=(height, width),
    )


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(count_equation(equation) for equation in jaxpr.eqns)


def count_equation(equation: core.JaxprEqn) -> int:
    """Returns the multiply-adds of one equation of a traced program, as `multiply_adds` does."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * sum(inner)
    if name == "cond":
        return max(inner)
    if name in _UNCOUNTABLE and any(inner):
        raise ValueError(f"the multiply-adds inside a {name} do not show in the traced program")
    return sum(inner)


_UNCOUNTABLE = ("while", "shard_map")


def _shape(atom: Any) -> tuple[int, ...]:
    """Returns a variable's shape; JAX's type of `aval` has none."""
    return atom.aval.shape


def _dot_general(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    _, features_in, *window = equation.params["dimension_numbers"].rhs_spec
    taps = kernel[features_in] * math.prod(kernel[axis] for axis in window)
    return math.prod(out) * taps // math.prod(equation.params["lhs_dilation"])


def write_table() -> None:
    """Counts every variant and writes the table."""
    lines = ["# variant  parameters  multiply-adds  height  width"]
    for name in model_names():
        cost = describe(create_model(name, scan=True))  # scanned: the same counts, traced sooner
        lines.append(
            f"{name} {cost.parameters} {cost.multiply_adds} {' '.join(map(str, cost.img_size))}"
        )
    with replacing(TABLE) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()

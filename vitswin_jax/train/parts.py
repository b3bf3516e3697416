"""Gradient accumulation: the sum over the parts of a batch, in the form of each platform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitswin_jax.core.choices import divisors
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn import xla
from vitswin_jax.nn.forms import forms

UNROLLED = 8
"""The most parts that are unrolled: each of them is compiled."""

Sum = tuple[Array, Params]
"""A loss and its gradients."""


def check_parts(batch_size: int, *, accum_steps: int, accum_at_once: bool) -> None:
    """Raises UserError where a batch cannot be divided into so many parts."""
    if accum_steps < 1 or batch_size % accum_steps:
        raise UserError(
            f"optim.accum_steps={accum_steps} must divide data.batch_size={batch_size}: one of "
            f"{divisors(max(batch_size, 1))}."
        )
    if accum_at_once and not 2 <= accum_steps <= UNROLLED:
        raise UserError(
            f"optim.accum_at_once=True needs optim.accum_steps of 2 to {UNROLLED}, not "
            f"{accum_steps}."
        )


def sum_over_parts(
    function: Callable[[Params, Any], tuple[Sum, Any]],
    params: Params,
    parts: Any,
    *,
    at_once: bool = False,
) -> tuple[Sum, Any]:
    """Returns the sum of `function(params, part)[0]` over the parts, and each `[1]`, stacked.

    The first axis of the leaves of `parts` counts the parts. A loop is compiled once. XLA's CPU
    backend computes less efficiently within a loop, convolutions above all, so there up to UNROLLED
    parts are written out. Then each waits for the gradients of the one before, so that the program
    holds the activations of one part at a time.

    With `at_once` all parts are written out on every platform, and none waits: XLA's CPU backend
    computes them at the same time on several cores, and holds the activations of all.
    """

    def part(index: int) -> Any:
        return jax.tree.map(lambda x: x[index], parts)

    many = jax.tree.leaves(parts)[0].shape[0]
    if at_once or (forms().parts == "unrolled" and many <= UNROLLED):
        total, other = function(params, part(0))
        others = [other]
        for index in range(1, many):
            after = params if at_once else jax.tree.map(xla.recompute_after, params, total[1])
            result, other = function(after, part(index))
            total = jax.tree.map(jnp.add, total, result)
            others.append(other)
        return total, jax.tree.map(lambda *each: jnp.stack(each), *others)

    def add(total: Sum, part: Any) -> tuple[Sum, Any]:
        result, other = function(params, part)
        return jax.tree.map(jnp.add, total, result), other

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zero, parts)

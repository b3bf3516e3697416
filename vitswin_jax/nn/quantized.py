"""Quantised training: linear layers with products of 8-bit codes.

A product's operands are rounded where it is computed: x ≈ s q, with codes q = round(x / s) and one
scale for each sum that the product takes, s = max |x| over what is summed / the largest code. Then

    y = s_x s_k Σ q_x q_k,    dL/dx = s_g s_k Σ q_g q_k,    dL/dk = s_x s_g Σ q_x q_g,

the straight-through estimator (arXiv:1308.3432): codes have the gradient of what they stand for.
Scales are of the step's own numbers, so training has no state besides its float32 parameters.

| name | x and k | g = dL/dy | dL/dk | after |
| --- | --- | --- | --- | --- |
| fp8 | float8_e4m3fn | float8_e5m2 | of codes | FP8 Formats for Deep Learning, arXiv:2209.05433 |
| int8 | int8 | int8 | in `dtype` | SwitchBack, arXiv:2304.13013 |
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped


class Scheme(NamedTuple):
    """The dtypes of the codes of one kind of quantised training, and the devices that have them."""

    forward: DTypeLike
    """Of inputs and kernels."""
    backward: DTypeLike
    """Of the outputs' gradients."""
    kernel_gradient: bool
    """Whether the gradient of a kernel, a sum over all tokens of a batch, is of codes too."""
    capability: tuple[int, int]
    """The oldest compute capability of NVIDIA's that multiplies such codes."""
    tpus: str
    """Regular expression of JAX's names of the TPUs that do, by Pallas's `get_tpu_info`."""


SCHEMES = {
    "fp8": Scheme(jnp.float8_e4m3fn, jnp.float8_e5m2, True, (8, 9), r"TPU7x"),
    "int8": Scheme(jnp.int8, jnp.int8, False, (7, 5), r"TPU v[56].*"),
}


def quantize(
    x: Float[Array, "*shape"], axes: Sequence[int], dtype: DTypeLike
) -> tuple[Shaped[Array, "*shape"], Float[Array, "*scales"]]:
    """Returns codes of `dtype` and float32 scales, of which x ≈ codes * scales.

    A scale is shared along `axes`, where the scales' size is 1. What is not finite makes its scale
    so, and with it all that is computed from that scale.
    """
    exact = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if exact else jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    peak = jnp.abs(x).max(axes, keepdims=True)
    scale = jnp.maximum(peak / largest, jnp.finfo(jnp.float32).tiny)
    codes = x / scale
    return (jnp.round(codes) if exact else codes).astype(dtype), scale


def einsum_of_codes(
    equation: str,
    first: Float[Array, "*first"],
    second: Float[Array, "*second"],
    dtypes: tuple[DTypeLike, DTypeLike],
) -> Float[Array, "*out"]:
    """Returns the float32 einsum of two quantised arrays, with a scale for each of its sums.

    `equation` has a letter for each axis.
    """
    inputs, out = equation.split("->")
    codes, scales = [], []
    for axes, x, dtype in zip(inputs.split(","), (first, second), dtypes, strict=True):
        summed = [i for i, axis in enumerate(axes) if axis not in out]
        q, scale = quantize(x, summed, dtype)
        codes.append(q)
        kept = "".join(axis for axis in out if axis in axes)
        scale = jnp.einsum(f"{axes}->{kept}", scale)
        scales.append(jnp.expand_dims(scale, [i for i, a in enumerate(out) if a not in kept]))
    integers = all(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes)
    y = jnp.einsum(equation, *codes, preferred_element_type=jnp.int32 if integers else jnp.float32)
    return y.astype(jnp.float32) * scales[0] * scales[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product_of_codes(
    name: str, equation: str, x: Float[Array, "*inputs"], kernel: Float[Array, "*kernel"]
) -> Float[Array, "*outputs"]:
    """Returns einsum(equation, x, kernel) in x's dtype, quantised as `SCHEMES[name]` has it.

    So are the products of the backward pass; the einsum's gradients are computed otherwise exactly.
    """
    dtype = SCHEMES[name].forward
    y = einsum_of_codes(letters(equation, x.ndim), x, kernel, (dtype, dtype))
    return y.astype(x.dtype)


def _forward(name: str, equation: str, x: Array, kernel: Array) -> tuple[Array, tuple]:
    return product_of_codes(name, equation, x, kernel), (x, kernel)


def _backward(
    name: str, equation: str, kept: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    scheme = SCHEMES[name]
    inputs, out = letters(equation, x.ndim).split("->")
    inputs, weights = inputs.split(",")
    dtypes = (scheme.backward, scheme.forward)
    of_input = einsum_of_codes(f"{out},{weights}->{inputs}", cotangent, kernel, dtypes)
    if scheme.kernel_gradient:
        of_kernel = einsum_of_codes(f"{out},{inputs}->{weights}", cotangent, x, dtypes)
    else:
        of_kernel = jnp.einsum(f"{out},{inputs}->{weights}", cotangent, x)
    return of_input.astype(x.dtype), of_kernel.astype(kernel.dtype)


product_of_codes.defvjp(_forward, _backward)


def letters(equation: str, ndim: int) -> str:
    """Returns an einsum's equation with a letter for each axis that "..." is of, of `ndim` in all.

    `ndim` is the first operand's, and the letters are capital ones.
    """
    before = equation.split(",", 1)[0]
    count = ndim - len(before.replace("...", "")) if "..." in before else 0
    return equation.replace("...", "".join(chr(ord("A") + i) for i in range(count)))


_NAME: contextvars.ContextVar[str | None] = contextvars.ContextVar("quantized", default=None)


@contextlib.contextmanager
def quantized(name: str) -> Iterator[None]:
    """Within this context, `xla.product` quantises the products of training by a scheme.

    It decorates a step, too. Models know nothing of it: they ask while they are traced.
    """
    before = _NAME.set(name)
    try:
        yield
    finally:
        _NAME.reset(before)


def scheme_in_use() -> str | None:
    """Returns the name of the scheme that a program is traced with, None outside `quantized`."""
    return _NAME.get()


def multiplies_codes(name: str, device: Any) -> bool:
    """Returns whether a jax.Device is known to multiply the codes of a scheme itself.

    XLA runs all others' products on wider numbers, with the same values.
    """
    scheme = SCHEMES[name]
    if device.platform == "tpu":
        return re.fullmatch(scheme.tpus, device.device_kind) is not None
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return capability is not None and (int(capability[1]), int(capability[2])) >= scheme.capability

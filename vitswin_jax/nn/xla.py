"""Backend-specific tricks, each named by its effect.

Every function here returns the number that the plain formula returns; only time and memory differ.
The one exception is `product` in quantised training, which rounds its operands (`nn.quantized`).
docs/performance.md has the measurements (section "What each choice bought"). Blocks get the tricks
through `layers.LayerNorm`, `layers.Linear` and `block.ResidualBlock`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vitswin_jax.nn.attention import attend
from vitswin_jax.nn.forms import forms
from vitswin_jax.nn.quantized import product_of_codes, scheme_in_use

Activation = Callable[[Array], Array]


@jax.custom_jvp
def store_gradient(x: Array) -> Array:
    """Returns x; on CPU, XLA stores the gradient of x before anything reads it.

    For the residual stream. The stream's gradient at a block is the next block's gradient plus one
    summand. Otherwise XLA fuses that sum into each of its readers, so each block re-sums the
    gradients of all later blocks: O(depth²) work. A ViT-S's training step takes 0.71 of the time,
    its compilation 0.26.
    """
    return x


@store_gradient.defjvp
def _store_gradient_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return x, store(tangent)


def store(x: Array) -> Array:
    """Returns x; on CPU, XLA stores x, so that no reader computes it again."""
    return jax.lax.platform_dependent(x, cpu=_divide_by_one, default=lambda x: x)


def _divide_by_one(x: Array) -> Array:
    """Returns x / 1, which XLA never computes twice and LLVM removes.

    XLA's CPU backend drops an optimization_barrier around x before it fuses. A barrier around the
    divisor stops the simplification of x / 1.
    """
    return x / jax.lax.optimization_barrier(jnp.ones_like(x))


def recompute_after(
    x: Float[Array, "*shape"], done: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns x; XLA computes values derived from the result anew, after `done`.

    XLA's CPU backend drops an optimization_barrier before it merges equal computations and orders
    them. There, a zero is added whose value depends on `done`.
    """
    return jax.lax.platform_dependent(x, done, cpu=_add_zero, default=_wait)


def _add_zero(x: Array, done: Array) -> Array:
    return x + jnp.maximum(jnp.minimum(done, 0), 0).astype(x.dtype)


def _wait(x: Array, done: Array) -> Array:
    return jax.lax.optimization_barrier((x, done))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product_keeping_input(equation: str, act: Activation | None, x: Array, kernel: Array) -> Array:
    """Returns einsum(equation, act(x), kernel); for the backward pass it keeps x and the kernel.

    Autodiff would also keep act(x), and every array that x was made of in a fused loop. The
    backward pass computes them again, after the gradient of x. Temporaries of a training step,
    together with `layer_norm`: 0.55 (ViT-S) and 0.61 (Swin-T).
    """
    return jnp.einsum(equation, x if act is None else act(x), kernel)


def _product_forward(
    equation: str, act: Activation | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return product_keeping_input(equation, act, x, kernel), (x, kernel)


def _product_backward(
    equation: str, act: Activation | None, kept: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    """Returns the gradients of x and the kernel, the kernel's last.

    After the gradient of x nothing reads the kernel, so an optimizer may write over it.
    """
    x, kernel = kept
    (of_input,) = jax.linear_transpose(lambda y: jnp.einsum(equation, y, kernel), x)(cotangent)
    y = x = recompute_after(x, of_input)
    if act is not None:
        y, transpose = jax.vjp(act, x)
        (of_input,) = transpose(of_input)
    (of_kernel,) = jax.linear_transpose(lambda k: jnp.einsum(equation, y, k), kernel)(cotangent)
    return of_input, of_kernel


product_keeping_input.defvjp(_product_forward, _product_backward)


def product(
    equation: str, act: Activation | None, x: Array, kernel: Array, *, train: bool
) -> Array:
    """Returns einsum(equation, act(x), kernel), in the form that suits the platform.

    In quantised training it is a product of codes.
    """
    if train and (scheme := scheme_in_use()):
        return product_of_codes(scheme, equation, x if act is None else act(x), kernel)
    if train and forms().products == "keep_input":
        return product_keeping_input(equation, act, x, kernel)
    return jnp.einsum(equation, x if act is None else act(x), kernel)


def linear(
    equation: str,
    act: Activation | None,
    x: Float[Array, "*inputs"],
    kernel: Float[Array, "*kernel"],
    bias: Float[Array, "*out"] | None,
    *,
    train: bool,
) -> Float[Array, "*outputs"]:
    """Returns einsum(equation, act(x), kernel) + bias, in the form that suits the platform.

    The bias has the axes of the kernel that the outputs have, in the kernel's order.
    """
    operands, out = equation.split("->")
    inputs, axes = operands.split(",")
    summed = "".join(axis for axis in axes if axis in inputs)
    whole = forms().linear == "matrix" and inputs.endswith(summed) and axes.startswith(summed)
    order = _product_order(inputs, axes, out, rows_first=whole or not train)
    if whole:
        y = _matrix_product(len(summed), act, x, kernel, bias, train=train)
    else:
        y = product(f"{operands}->{order}", act, x, kernel, train=train)
        if bias is not None:
            y = y + _among_axes(bias, axes, order, y.ndim)
    return y if order == out else jnp.einsum(f"{order}->{out}", y)


def _matrix_product(
    summed: int, act: Activation | None, x: Array, kernel: Array, bias: Array | None, *, train: bool
) -> Array:
    """Returns a product over x's last and the kernel's first `summed` axes, plus the bias.

    It is computed as the product of two matrices, plus a vector. On GPUs, XLA adds a vector to the
    rows of a matrix product within the product's own kernel (cuBLASLt's epilogue), and a residual
    too; bias and sum of other shapes take kernels of their own.
    """
    before, after = x.shape[: x.ndim - summed], kernel.shape[summed:]
    size = math.prod(after)
    y = product("nc,cd->nd", act, x.reshape(-1, kernel.size // size), kernel.reshape(-1, size),
                train=train)  # fmt: skip
    if bias is not None:
        y = y + bias.reshape(1, size)
    return y.reshape(*before, *after)


def _among_axes(bias: Array, kernel: str, order: str, ndim: int) -> Array:
    """Returns the bias with an axis of 1 for each axis of the product that the kernel lacks."""
    sizes = dict(zip((axis for axis in order if axis in kernel), bias.shape, strict=True))
    before, dots, after = order.partition("...")
    inner = ndim - len(before + after) if dots else 0
    return bias.reshape([sizes.get(axis, 1) for axis in (*before, *inner * " ", *after)])


def _product_order(inputs: str, kernel: str, out: str, *, rows_first: bool) -> str:
    """Returns the order of axes in which a product is best computed, before it is transposed.

    In inference, and where rows and kernel are made matrices, that is the order of the inputs, then
    of the kernel: 0.92 of the time of ViT-S and Swin-T on CPU, for XLA otherwise multiplies
    transposed operands. With a backward pass it costs 1 % (ViT-S) to 5 % (Swin-T) there.
    """
    if not rows_first:
        return out
    rows = inputs.replace("...", "@")
    order = [axis for axis in rows + kernel if axis in out.replace("...", "@")]
    return "".join(order).replace("@", "...")


def rows(x: Float[Array, "*batch c"]) -> Float[Array, "n c"]:
    """Returns all tokens of all images, one per row.

    Of maps (b, h, w, c), XLA's CPU backend makes slower programs: a norm and an MLP of Swin's first
    stage take 1.7 times as long.
    """
    return x.reshape(-1, x.shape[-1])


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x Φ(x), Φ the normal distribution (arXiv:1606.08415), by erf as PyTorch does.

    Computed in float32, because bfloat16 cannot represent erf's tail next to 1. jax.nn.gelu uses
    erfc, as exact and on CPU three times as slow. The backward pass keeps only the slope.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = _gelu_and_slope(primals[0])
    return value, slope * tangents[0]


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    below = 0.5 * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    # Below -6 erf is -1 in float32, so the selection changes no number, but it avoids NaN at -inf.
    # It also keeps XLA's CPU backend from calling YNNPACK for the arithmetic and the products
    # around it, which would write 0.5, 1 and √½ out as three arrays of the size of x.
    value = jnp.where(wide < -20.0, 0.0, wide * below)
    return value.astype(x.dtype), (below + wide * density).astype(x.dtype)


def layer_norm(
    x: Float[Array, "n c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> Float[Array, "n c"]:
    """Returns (x - mean) / √(variance + epsilon) · scale + bias over c, float32.

    The variance takes two passes, as accurate as the originals'.
    """
    return _layer_norm(x.astype(jnp.float32), scale, bias, epsilon, forms().norm)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _layer_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, keep: str
) -> Float[Array, "n c"]:
    """Returns the norm; the backward pass keeps less than nn.LayerNorm's two arrays.

    With `keep` "keep_standard" that is the standardised input. With "keep_statistics" it is x, and
    the mean and deviation of each row: XLA's GPU backend otherwise computes these again with the
    gradient of x, and writes what the gradient of `scale` sums in float32. On an H100 a training
    step takes 0.98 (ViT-B) and 0.97 (Swin-T) of the time.
    """
    centred, inverse = _centre(x, epsilon)
    return centred * inverse * scale[None] + bias[None]


@_layer_norm.defjvp
def _layer_norm_jvp(
    epsilon: float,
    keep: str,
    primals: tuple[Array, Array, Array],
    tangents: tuple[Array, Array, Array],
) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    centred, inverse = _centre(x, epsilon)
    if keep == "keep_statistics":
        value = centred * inverse * scale[None] + bias[None]
        mean, inverse = jax.lax.optimization_barrier((x.mean(-1, keepdims=True), inverse))
        standard = (x - mean) * inverse
    else:
        standard = store(centred * inverse)
        value = standard * scale[None] + bias[None]
    along = (standard * dx).mean(-1, keepdims=True)
    dstandard = (dx - dx.mean(-1, keepdims=True) - standard * along) * inverse
    return value, dstandard * scale[None] + standard * dscale[None] + dbias[None]


def _centre(x: Array, epsilon: float) -> tuple[Float[Array, "n c"], Float[Array, "n 1"]]:
    """Returns x less its mean over c, and 1 over its deviation."""
    centred = x - x.mean(-1, keepdims=True)
    return centred, jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)


_CACHED = 8 * 2**20
"""Bytes of logits that stay in a CPU's cache between the softmax and the product with v."""


def attend_in_cache(q: Array, k: Array, v: Array, **nothing: Any) -> Array:
    """Returns `attention.attend`; on CPU a few heads at a time: their logits stay in cache.

    Where those of one head are too many, it is a block of its queries at a time. q, k and v are
    (*batch, heads, n, d), without biases and dropout. The backward pass computes the logits again.
    The number of examples may be symbolic, as in jax.export.
    """
    if any(nothing.values()):
        raise ValueError("attend_in_cache takes no biases and no dropout.")
    return jax.lax.platform_dependent(q, k, v, cpu=_attend_in_groups, default=attend)


def _attend_in_groups(q: Array, k: Array, v: Array) -> Array:
    heads, logits = math.prod(q.shape[-3:-2]), 4 * q.shape[-2] * k.shape[-2]
    fit, blocks = max(_CACHED // logits, 1), -(-logits // _CACHED)
    at_once = max(count for count in range(1, heads + 1) if heads % count == 0 and count <= fit)
    groups = tuple(x.reshape(-1, at_once, *x.shape[-2:]) for x in (q, k, v))
    one = jax.checkpoint(attend, prevent_cse=False)

    def of_group(group: tuple[Array, Array, Array]) -> Array:
        return one(*group) if blocks == 1 else _attend_in_blocks(one, *group, blocks=blocks)

    return jax.lax.map(of_group, groups).reshape(*q.shape[:-1], v.shape[-1])


def _attend_in_blocks(
    attend: Callable[..., Array],
    q: Float[Array, "heads q d"],
    k: Float[Array, "heads k d"],
    v: Float[Array, "heads k d"],
    *,
    blocks: int,
) -> Float[Array, "heads q d"]:
    """Returns attention of equally many queries at a time; those that fill the last are cut off."""
    n = q.shape[-2]
    rows = -(-n // blocks)
    filled = jnp.pad(q, ((0, 0), (0, rows * blocks - n), (0, 0)))
    each = rearrange(filled, "h (block q) d -> block h q d", block=blocks)
    mixed = jax.lax.map(lambda some: attend(some, k, v), each)
    return rearrange(mixed, "block h q d -> h (block q) d")[:, :n]

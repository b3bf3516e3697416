"""Attention by tokamax, a library of kernels for GPUs: Mosaic GPU, or Pallas through Triton.

Its biases have a gradient. That is formed for each window or image before it is summed: logits,
float32, in memory, which the kernel of `window_kernel` never writes. `choices.TOKAMAX_KERNELS` has
which of its kernels takes what.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn import choices
from vitswin_jax.nn.forms import platform


def tokamax_attention(
    q: Float[Array, "*batch n heads d"],
    k: Float[Array, "*batch n heads d"],
    v: Float[Array, "*batch n heads d"],
    bias: Float[Array, "..."] | None = None,
    *,
    scale: float,
    tokens: int | None = None,
    kernel: str | None = None,
) -> Float[Array, "*batch n heads d"]:
    """Returns softmax(scale q kᵀ + bias) v, the keys being the first `tokens` of each sequence.

    `bias` broadcasts to (*batch, heads, n, n). `kernel` is a key of `choices.TOKAMAX_KERNELS`; None
    takes the first that serves. Raises UserError where none does.
    """
    facts = {"dtype": q.dtype.name, "tokens": q.shape[-3], "head_dim": q.shape[-1]}
    if kernel is None:
        setting = choices.here(platform(), biased=bias is not None, **facts)
        kernel = choices.tokamax_kernel(setting)
    lengths = None
    if tokens not in (None, q.shape[-3]):
        lengths = jnp.full(q.shape[:-3], tokens, jnp.int32)
    if bias is not None:
        bias = jnp.expand_dims(bias, range(q.ndim - bias.ndim))
    try:
        return _library().dot_product_attention(
            q,
            k,
            v,
            bias=bias,
            key_value_seq_lengths=lengths,
            scale=scale,
            implementation=kernel,
        )
    except NotImplementedError:
        raise UserError(
            f"attn_impl='tokamax': its kernel {kernel!r} does not take {facts['dtype']}, "
            f"{facts['tokens']} tokens and heads of {facts['head_dim']} channels here; use 'auto'."
        ) from None


@functools.cache
def _library() -> Any:
    try:
        import tokamax
    except (ImportError, AttributeError):  # of another JAX than it was written for
        raise UserError(
            f"attn_impl='tokamax': the installed tokamax does not work with JAX {jax.__version__}; "
            "install another of the two, or use 'auto'."
        ) from None
    # A line per shape and kernel, longer than a screen; rules of its own choose the tiles then.
    logging.getLogger("absl").addFilter(lambda line: "Autotuning cache miss" not in str(line.msg))
    return tokamax

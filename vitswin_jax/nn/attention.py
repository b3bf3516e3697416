"""Attention as one equation, softmax(q kᵀ + Σ biases) v (Transformer, eq. 1).

Arrays have heads before tokens, (..., heads, tokens, head_dim), so that both products are batched
matrix products. The axes before the heads are the batch and, in Swin, the windows.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Dropout = Callable[[Array], Array]

MASKED = -100.0
"""Summand for the logit of a pair that may not attend: Swin's own value. -inf would differ, because
Swin V2's logits reach 100."""


def attend(
    q: Float[Array, "*batch q d"],
    k: Float[Array, "*batch k d"],
    v: Float[Array, "*batch k d"],
    *,
    biases: tuple[Array, ...] = (),
    dropout: Dropout | None = None,
) -> Float[Array, "*batch q d"]:
    """Returns softmax(q kᵀ + Σ biases) v for scaled queries q.

    Logits and softmax are float32 for inputs of any dtype. Each bias broadcasts to (*batch, q, k).
    `dropout` acts on the attention weights.
    """
    logits = attention_logits(q, k, biases)
    # Dividing by the sum after the product with v gives the same value on fewer numbers.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    if dropout is not None:
        weights = dropout(weights)
    out = jnp.einsum(
        "...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (out / total).astype(v.dtype)


def attention_logits(
    q: Float[Array, "*batch q d"], k: Float[Array, "*batch k d"], biases: tuple[Array, ...]
) -> Float[Array, "*batch q k"]:
    """Returns q kᵀ + Σ biases, float32."""
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    for bias in biases:
        logits = logits + jnp.expand_dims(bias, range(logits.ndim - bias.ndim))
    return logits


def goes_plain(module: nn.Module) -> bool:
    """Returns whether a module's parameters are made or its weights sown, which no kernel does."""
    return module.is_initializing() or module.is_mutable_collection("intermediates")


def sow_weights(module: nn.Module, q: Array, k: Array, *, biases: tuple[Array, ...] = ()) -> None:
    """Sows softmax(q kᵀ + Σ biases) as the module's "attention" where intermediates are mutable.

    The weights are float32, (*batch, q, k), without dropout. In other programs nothing is computed.
    """
    if module.is_mutable_collection("intermediates"):
        weights = jax.nn.softmax(attention_logits(q, k, biases))
        module.sow("intermediates", "attention", weights)

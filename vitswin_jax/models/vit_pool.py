"""Pooling of a ViT's tokens to the features that its head reads.

Axes: b batch, n tokens, c embed_dim, d channels of a head.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.models.geometry import Pooling
from vitswin_jax.nn.attention import attend, sow_weights
from vitswin_jax.nn.block import BlockOptions
from vitswin_jax.nn.mlp import Mlp

GLOBAL_POOLS = ("token", "avg", "max", "avgmax", "token_avg", "map", "query")


def pool_tokens(
    x: Float[Array, "b n c"], kind: str, *, prefix: int, include_prefix: bool, heads: int = 1
) -> Float[Array, "b heads d"]:
    """Returns a row of features for each head, from tokens whose first `prefix` are no patches.

    `kind` is of `GLOBAL_POOLS`, without "map" and "query". Heads of "token" each read a token of
    their own; means and maxima are over patches or, with `include_prefix`, over all tokens.
    """
    if kind == "token":
        return x[:, :heads]
    read = x if include_prefix else x[:, prefix:]
    if kind == "max":
        return read.max(1, keepdims=True)
    mean = read.mean(1, keepdims=True)
    if kind == "avgmax":
        return 0.5 * (read.max(1, keepdims=True) + mean)
    return jnp.concatenate([x[:, :1], mean], axis=-1) if kind == "token_avg" else mean


def describe_pooling(
    kind: str, *, prefix: int, patches: int, include_prefix: bool, heads: int
) -> Pooling:
    """Returns the shares that tokens have in the features; a maximum is taken for a mean."""
    if kind == "token":
        return Pooling(heads, 0.0)
    if kind == "token_avg":
        return Pooling(1, 0.5)
    if kind in ("map", "query"):
        return Pooling(attention="attn_pool")
    return Pooling(prefix, patches / (prefix + patches)) if include_prefix else Pooling()


class AttentionPool(nn.Module):
    """Pools tokens by one learned query, then an MLP (multihead attention pooling, SigLIP)."""

    num_heads: int
    mlp_dim: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], *, train: bool) -> Float[Array, "b c"]:
        """Returns x + mlp(norm(x)) of the query's attention output x."""
        (b, _, c), heads, dtype = x.shape, self.num_heads, self.options.dtype
        init = nn.initializers.xavier_uniform()
        dense = functools.partial(nn.DenseGeneral, kernel_init=init, dtype=dtype)
        latent = self.param("latent", init, (1, c), jnp.float32)
        q = dense((heads, c // heads), name="q")(latent)
        kv = dense((2, heads, c // heads), name="kv")(x)
        k, v = jnp.moveaxis(kv, (2, 3), (0, 2))  # each b heads n d
        q = jnp.swapaxes(q, 0, 1) * (c // heads) ** -0.5
        q = jnp.broadcast_to(q, (b, heads, 1, c // heads))
        sow_weights(self, q, k)
        pooled = dense(c, axis=(-2, -1), name="proj")(attend(q, k, v)[:, :, 0])
        y = self.options.norm("norm")(pooled)
        mlp = Mlp(self.mlp_dim, self.options.act, dtype=dtype, name="mlp")
        return pooled + mlp(y, train=train)


class QueryPool(nn.Module):
    """Pools tokens by one learned query, without projecting it and without an MLP (AIMv2)."""

    num_heads: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], *, train: bool) -> Float[Array, "b c"]:
        """Returns the projection of the query's attention output; keys are biased as blocks' are.

        The query has `num_heads` heads, and logits are divided by the root of their width.
        """
        del train
        (b, _, c), heads, dtype = x.shape, self.num_heads, self.options.dtype
        init = nn.initializers.xavier_uniform()
        dense = functools.partial(nn.DenseGeneral, kernel_init=init, dtype=dtype)
        latent = self.param("latent", nn.initializers.normal(0.02), (1, c), jnp.float32)
        biased = self.options.qkv_bias is True
        kv = dense((2, heads, c // heads), use_bias=biased, name="kv")(x)
        k, v = jnp.moveaxis(kv, (2, 3), (0, 2))  # each b heads n d
        q = latent.astype(k.dtype).reshape(heads, 1, c // heads) * (c // heads) ** -0.5
        q = jnp.broadcast_to(q, (b, *q.shape))
        sow_weights(self, q, k)
        return dense(c, axis=(-2, -1), name="proj")(attend(q, k, v)[:, :, 0])

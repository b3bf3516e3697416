"""What a ViT is made of: the transformer block and attention pooling.

Axes: b batch, n tokens, c embed_dim, d channels of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.nn.attention import attend, sow_weights
from vitswin_jax.nn.block import BlockOptions, ResidualBlock, SelfAttention
from vitswin_jax.nn.execution import Sequences
from vitswin_jax.nn.layers import LayerNorm, LayerScale, Mlp


class Block(ResidualBlock):
    """A pre-norm transformer block (ViT, eqs. 2 and 3).

    A block may have positions: embeddings (1, n, c) that are added to its input or, with
    `relative`, biases (heads, n, n) of its attention. `create_positions` makes the block's own.
    """

    num_heads: int
    mlp_dim: int
    init_values: float | None = None  # of LayerScale; None: no LayerScale
    relative: bool = False
    create_positions: Callable[..., Array] | None = None  # takes the module's `param`

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        drop_path: float | Float[Array, ""],
        positions: Float[Array, "_ _ _"] | None = None,
        *,
        sequences: Sequences,
        train: bool,
    ) -> Float[Array, "b n c"]:
        """Adds attention, then the MLP, each dropped as a branch with probability `drop_path`.

        `positions` are those that all blocks share, `sequences` says how they attend.
        """
        options = self.options
        if self.create_positions is not None:
            positions = self.create_positions(self.param)
        if positions is not None and not self.relative:
            x = x + sequences.pad(positions).astype(x.dtype)
        attention = SelfAttention(self.num_heads, options, name="attn")
        mlp = Mlp(self.mlp_dim, options.act, options.drop_rate, dtype=options.dtype, name="mlp")

        y = self.norm("norm1")(x)
        bias = positions if self.relative else None
        y = sequences.mix(attention, y, bias=bias, train=train)
        x = self.add(x, self._scaled(y, name="ls1"), drop_path, train=train)
        y = mlp(self.norm("norm2")(x), train=train)
        return self.add(x, self._scaled(y, name="ls2"), drop_path, train=train)

    def _scaled(self, y: Array, *, name: str) -> Array:
        if self.init_values is None:
            return y
        return LayerScale(self.init_values, dtype=self.options.dtype, name=name)(y)


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
        y = LayerNorm(self.options.norm_eps, dtype, name="norm")(pooled)
        mlp = Mlp(self.mlp_dim, self.options.act, dtype=dtype, name="mlp")
        return pooled + mlp(y, train=train)

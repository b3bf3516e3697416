"""What a ViT is made of: the transformer block and attention pooling.

Axes: b batch, n tokens, c embed_dim, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.nn.attention import SelfAttention, attend, sow_weights
from vitswin_jax.nn.layers import DropPath, LayerNorm, LayerScale, Mlp, store_gradient


class Block(nn.Module):
    """A pre-norm transformer block (ViT, eqs. 2 and 3).

    A block may have positions: embeddings (1, n, c) that it adds to its input, or, where they are
    `relative`, biases (heads, n, n) of its attention. `create_positions` makes the block's own.
    """

    num_heads: int
    mlp_dim: int
    qkv_bias: bool
    act: str
    norm_eps: float
    init_values: float | None
    drop_rate: float
    attn_drop_rate: float
    attn_impl: str
    dtype: DTypeLike
    relative: bool = False
    create_positions: Callable[..., Array] | None = None  # takes the module's `param`

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        drop_path: float | Float[Array, ""],
        positions: Float[Array, "_ n _"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b n c"]:
        """Adds attention, then the MLP, each dropped as a branch with probability `drop_path`.

        `positions` are those that all blocks share.
        """
        if self.create_positions is not None:
            positions = self.create_positions(self.param)
        if positions is not None and not self.relative:
            x = x + positions.astype(x.dtype)
        y = LayerNorm(self.norm_eps, self.dtype, name="norm1")(x)
        y = SelfAttention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            proj_drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
            attn_impl=self.attn_impl,
            dtype=self.dtype,
            name="attn",
        )(y, bias=positions if self.relative else None, train=train)
        x = store_gradient(x + DropPath()(self._scaled(y, name="ls1"), drop_path, train=train))
        y = LayerNorm(self.norm_eps, self.dtype, name="norm2")(x)
        y = Mlp(self.mlp_dim, self.act, self.drop_rate, dtype=self.dtype, name="mlp")(
            y, train=train
        )
        return store_gradient(x + DropPath()(self._scaled(y, name="ls2"), drop_path, train=train))

    def _scaled(self, y: Array, *, name: str) -> Array:
        if self.init_values is None:
            return y
        return LayerScale(self.init_values, dtype=self.dtype, name=name)(y)


class AttentionPool(nn.Module):
    """Pools tokens by one learned query, then an MLP (multihead attention pooling, SigLIP)."""

    num_heads: int
    mlp_dim: int
    act: str
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], *, train: bool) -> Float[Array, "b c"]:
        """Returns x + mlp(norm(x)) of the query's attention output x."""
        (b, _, c), heads = x.shape, self.num_heads
        init = nn.initializers.xavier_uniform()
        latent = self.param("latent", init, (1, c), jnp.float32)
        q = nn.DenseGeneral((heads, c // heads), kernel_init=init, dtype=self.dtype, name="q")(
            latent
        )
        kv = nn.DenseGeneral((2, heads, c // heads), kernel_init=init, dtype=self.dtype, name="kv")(
            x
        )
        k, v = jnp.moveaxis(kv, (2, 3), (0, 2))  # each b heads n d
        q = jnp.broadcast_to(
            jnp.swapaxes(q, 0, 1) * (c // heads) ** -0.5, (b, heads, 1, c // heads)
        )
        sow_weights(self, q, k)
        pooled = attend(q, k, v)[:, :, 0]
        pooled = nn.DenseGeneral(c, axis=(-2, -1), kernel_init=init, dtype=self.dtype, name="proj")(
            pooled
        )
        y = LayerNorm(self.norm_eps, self.dtype, name="norm")(pooled)
        return pooled + Mlp(self.mlp_dim, self.act, dtype=self.dtype, name="mlp")(y, train=train)

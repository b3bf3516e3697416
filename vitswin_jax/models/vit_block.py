"""The block of a ViT.

Axes: b batch, n tokens, c embed_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from vitswin_jax.nn.block import ResidualBlock, SelfAttention
from vitswin_jax.nn.execution import Sequences
from vitswin_jax.nn.rotary import Rotation
from vitswin_jax.nn.sides import Size


class Block(ResidualBlock):
    """A transformer block (ViT, eqs. 2 and 3); `options` name its parts.

    A block may have positions: embeddings (1, n, c) that are added to its input or, with
    `relative`, biases (heads, n, n) of its attention. `create_positions` makes the block's own, and
    `create_rotation`, of a grid, the rotation of its queries and keys.
    """

    num_heads: int
    mlp_dim: int
    relative: bool = False
    create_positions: Callable[..., Array] | None = None  # takes the module's `param`
    create_rotation: Callable[..., Rotation] | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        drop_path: float | Float[Array, ""],
        positions: Float[Array, "_ _ _"] | None = None,
        *,
        rotation: Rotation | None = None,
        grid: Size | None = None,
        sequences: Sequences,
        train: bool,
    ) -> Float[Array, "b n c"]:
        """Adds attention, then the MLP, each dropped as a branch with probability `drop_path`.

        `positions` and `rotation` are those that all blocks share, `grid` is what a block's own
        rotation is made of, and `sequences` says how blocks attend.
        """
        options = self.options
        if self.create_positions is not None:
            positions = self.create_positions(self.param)
        if self.create_rotation is not None:
            rotation = self.create_rotation(self.param, grid)
        if positions is not None and not self.relative:
            x = x + sequences.pad(positions).astype(x.dtype)
        attention = SelfAttention(self.num_heads, options, name="attn")
        mlp = options.mlp(self.mlp_dim, name="mlp")

        def attend(y: Array) -> Array:
            bias = positions if self.relative else None
            return sequences.mix(attention, y, bias=bias, rotation=rotation, train=train)

        x = self.branch(x, attend, drop_path, number=1, train=train)
        return self.branch(x, functools.partial(mlp, train=train), drop_path, number=2, train=train)

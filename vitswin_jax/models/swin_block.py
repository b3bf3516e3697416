"""A Swin block: attention in windows and in shifted windows (Swin, section 3.2).

Axes: b batch, h w map, n tokens of a window, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.nn.block import ResidualBlock, SelfAttention
from vitswin_jax.nn.relative import table_init
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import Cut, relative_position_index


class WindowAttention(SelfAttention):
    """Attention in windows, softmax(q kᵀ / √d + B) v (Swin, eq. 4)."""

    window_size: Size = (7, 7)

    def position_bias(self) -> Float[Array, "heads n n"]:
        """Returns B: rows of the learned table, by the relative position of query and key."""
        rows = (2 * self.window_size[0] - 1) * (2 * self.window_size[1] - 1)
        shape = (rows, self.num_heads)
        table = self.param("relative_position_bias_table", table_init, shape, jnp.float32)
        return jnp.moveaxis(table[relative_position_index(self.window_size)], -1, 0)


class UnbiasedWindowAttention(WindowAttention):
    """Attention in windows with B = 0: the row "no pos." of Swin's table 4."""

    def position_bias(self) -> Float[Array, "heads n n"]:
        """Returns zeros, which every backend takes."""
        tokens = math.prod(self.window_size)
        return jnp.zeros((self.num_heads, tokens, tokens))


class SwinBlock(ResidualBlock):
    """A pre-norm block whose attention stays in windows (Swin, eq. 3).

    `attention` and `mlp` create the two branches' modules, each called with a name.
    """

    attention: Callable[..., Any]
    mlp: Callable[..., nn.Module]
    cut: Cut

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], drop_path: float | Float[Array, ""], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Adds window attention, then the MLP, each dropped with probability `drop_path`."""
        y = self.mix_windows(self.norm("norm1")(x), train=train)
        x = self.add(x, y, drop_path, train=train)
        y = self.mlp(name="mlp")(self.norm("norm2")(x), train=train)
        return self.add(x, y, drop_path, train=train)

    def mix_windows(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Returns attention within (shifted) windows: `windows.map_windows`, or its equal."""
        attention = self.attention(name="attn")
        return self.options.execution.mix_windows(attention, x, self.cut, train=train)

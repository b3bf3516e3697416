"""Swin Transformer V2 (arXiv:2111.09883): cosine attention, continuous position bias, post-norm.

Axes: b batch, h w map, n tokens of a window, c channels, d channels of a head.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swin_block import SwinBlock
from vitswin_jax.nn.attention import MASKED
from vitswin_jax.nn.block import SelfAttention
from vitswin_jax.nn.layers import pair, unit
from vitswin_jax.nn.relative import ContinuousPositionBias, bounded, log_spaced_coordinates
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import relative_position_index

MAX_LOGIT_SCALE = math.log(100.0)  # the temperature is at least 0.01 (section 3.2)


class CpbAttention(SelfAttention):
    """Attention in windows with a continuous position bias (Swin V2, eq. 3; Swin-MoE)."""

    window_size: Size = (8, 8)
    pretrained_window_size: Size = (0, 0)

    def position_bias(self) -> Float[Array, "heads n n"]:
        """Returns B by the relative position of query and key."""
        offsets = log_spaced_coordinates(self.window_size, self.pretrained_window_size)
        table = self.bound(ContinuousPositionBias(self.num_heads, name="cpb_mlp")(offsets))
        return jnp.moveaxis(table[relative_position_index(self.window_size)], -1, 0)

    def bound(self, table: Float[Array, "rows heads"]) -> Float[Array, "rows heads"]:
        """Returns the biases as they are: Swin-MoE's have no bound."""
        return table


class CosineAttention(CpbAttention):
    """Attention in windows, softmax(cos(q, k) / τ + B) v (Swin V2, eq. 2).

    The bias of the key would change no softmax and is left out: `qkv_bias` is "qv".
    """

    @property
    def normalizes(self) -> bool:
        """Whether `prepare` does more than scale by 1/√d."""
        return True

    def bound(self, table: Float[Array, "rows heads"]) -> Float[Array, "rows heads"]:
        """Returns biases in (0, 16)."""
        return bounded(table)

    def prepare(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Makes q·k the cosine over the temperature, at least 0.01."""
        init = nn.initializers.constant(math.log(10.0))
        scale = self.param("logit_scale", init, (self.num_heads, 1, 1), jnp.float32)
        scale = jnp.exp(jnp.minimum(scale, MAX_LOGIT_SCALE))
        q = unit(q) * jnp.expand_dims(scale, range(q.ndim - 3))
        return q.astype(v.dtype), unit(k).astype(v.dtype), v


class SwinV2Block(SwinBlock):
    """A residual-post-norm block: x + norm(f(x)) (Swin V2, fig. 1)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], drop_path: float | Float[Array, ""], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Adds window attention, then the MLP, each normed before it is added.

        A fresh block is the identity, for its norms start at zero.
        """
        zero = nn.initializers.zeros_init()
        y = self.norm("norm1", scale_init=zero)(self.mix_windows(x, train=train))
        x = self.add(x, y, drop_path, train=train)
        y = self.norm("norm2", scale_init=zero)(self.mlp(name="mlp")(x, train=train))
        return self.add(x, y, drop_path, train=train)


class SwinV2(Swin):
    """Swin Transformer V2; what `Swin` has, and two fields more.

    `pretrained_window_sizes`, one number or pair a stage, are the windows that the position biases
    were trained with, 0 for the stage's own. `mask_value` is what the logit of a pair that may not
    attend has added; it shows, for logits reach 116.
    """

    _block_class: ClassVar[type[nn.Module]] = SwinV2Block
    _norm_last: ClassVar[bool] = True

    img_size: int | tuple[int, int] = 256
    window_size: int | tuple[int, int] | tuple[tuple[int, int], ...] = 8
    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)
    mask_value: float = MASKED

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        super().check()
        if len(self.pretrained_window_sizes) != len(self.depths):
            raise UserError(
                f"pretrained_window_sizes={self.pretrained_window_sizes} must have one entry for "
                f"each of the {len(self.depths)} stages."
            )

    def _attention(self, stage: int, window: Size) -> Callable[..., nn.Module]:
        return functools.partial(
            CosineAttention,
            num_heads=self.num_heads[stage],
            options=dataclasses.replace(self._options, qkv_bias=self.qkv_bias and "qv"),
            window_size=window,
            pretrained_window_size=pair(self.pretrained_window_sizes[stage]),
        )

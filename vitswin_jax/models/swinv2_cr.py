"""Swin Transformer V2-CR: timm's Swin V2 of before the original code, its biases by ln offsets.

Axes: b batch, h w map, n tokens of a window, c channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swinv2 import CosineAttention, SwinV2Block
from vitswin_jax.nn.relative import mlp_biases
from vitswin_jax.nn.sides import Size

BIAS_DIM = 384  # channels of the MLP that makes biases


class CrAttention(CosineAttention):
    """Cosine attention in windows whose biases depend on offsets alone, and have no bound."""

    def position_bias(self) -> Float[Array, "heads n n"]:
        """Returns B by the relative position of query and key."""
        return mlp_biases(
            "relative_mlp",
            grid=self.window_size,
            prefix=0,
            num_heads=self.num_heads,
            hidden_dim=BIAS_DIM,
        )


def extra_norms(
    depths: tuple[int, ...], extra_norm_period: int, extra_norm_stage: bool
) -> tuple[tuple[int, ...], ...]:
    """Returns, for each stage, the blocks that a norm of the main branch follows.

    The norm after the last block of all is the model's final norm, and is not among them.
    """
    found = []
    for stage, depth in enumerate(depths):
        period = extra_norm_period or depth + 1
        after = {i for i in range(depth) if (i + 1) % period == 0}
        after |= {depth - 1} if extra_norm_stage else set()
        after -= {depth - 1} if stage == len(depths) - 1 else set()
        found.append(tuple(sorted(after)))
    return tuple(found)


class SwinV2Cr(Swin):
    """Swin Transformer V2-CR; what `Swin` has, and two fields more.

    `extra_norm_period` norms the main branch after every N blocks of a stage (0: never), as the
    largest models of the Swin V2 paper do, and `extra_norm_stage` after each stage.
    """

    _block_class: ClassVar[type[nn.Module]] = SwinV2Block

    extra_norm_period: int = 0
    extra_norm_stage: bool = False

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        super().check()
        if self.extra_norm_period < 0:
            raise UserError(f"extra_norm_period={self.extra_norm_period} must be 0 or more.")

    @property
    def _norm_after(self) -> tuple[tuple[int, ...], ...]:
        return extra_norms(self.depths, self.extra_norm_period, self.extra_norm_stage)

    def _attention(self, stage: int, window: Size) -> Callable[..., nn.Module]:
        heads = self.num_heads[stage]
        return functools.partial(CrAttention, heads, self._options, window_size=window)

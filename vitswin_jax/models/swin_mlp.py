"""Swin-MLP: Swin with one matrix over each window's places where Swin has attention.

Official code, models/swin_mlp.py. Axes: b batch, h w map, n tokens of a window, c channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.models.geometry import Geometry
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swin_block import SwinBlock
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import pad_to_multiple, window_partition, window_reverse


class SpatialMlp(nn.Module):
    """Mixes the n places of a window, each head, a run of c / heads channels, by its own matrix.

    Parameters: `kernel` (heads, n, n), from place to place, and `bias` (heads, n).
    """

    num_heads: int
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b windows n c"]) -> Float[Array, "b windows n c"]:
        """Returns the windows mixed."""
        n, heads = x.shape[2], self.num_heads
        kernel = self.param("kernel", self.kernel_init, (heads, n, n), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (heads, n), jnp.float32)
        split = x.reshape(*x.shape[:3], heads, -1)
        out = jnp.einsum("bwnhd,hnm->bwmhd", split, kernel.astype(self.dtype))
        return (out + bias.T[None, None, :, :, None].astype(self.dtype)).reshape(x.shape)


class SwinMlpBlock(SwinBlock):
    """A block whose windows are mixed by `SpatialMlp`, and shifted by padding instead of a roll."""

    def mix_windows(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Returns the map mixed within windows; the zeros around a shifted map are mixed in."""
        del train
        (height, width), (top, left) = x.shape[1:3], (0, 0)
        size, shift = self.cut.window_size, self.cut.shift
        if any(shift):
            top, left = (side - step for side, step in zip(size, shift, strict=True))
            x = jnp.pad(x, ((0, 0), (top, shift[0]), (left, shift[1]), (0, 0)))
        x = pad_to_multiple(x, size)
        windows = self.attention(name="spatial_mlp")(window_partition(x, size))
        x = window_reverse(windows, size, height=x.shape[1], width=x.shape[2])
        return x[:, top : top + height, left : left + width]


class SwinMlp(Swin):
    """Swin-MLP; what `Swin` has, but for what is attention's.

    `qkv_bias`, `attn_drop_rate`, `attn_impl` and `pad_before_roll` have no meaning and keep their
    defaults.
    """

    _block_class: ClassVar[type[nn.Module]] = SwinMlpBlock

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        super().check()
        if (
            not (self.qkv_bias and self.pad_before_roll)
            or self.attn_drop_rate
            or self.attn_impl not in ("auto", "xla")
        ):
            raise UserError(
                "Swin-MLP has no attention; qkv_bias, attn_drop_rate, attn_impl and "
                "pad_before_roll must keep their defaults."
            )

    def _attention(self, stage: int, window: Size) -> Callable[..., nn.Module]:
        del window  # it shows in the windows
        return functools.partial(SpatialMlp, self.num_heads[stage], self._kernel_init, self.dtype)

    @nn.nowrap
    def geometry(self, size: Size | None = None) -> Geometry:
        """Returns the geometry of a Swin without attention; see `HasGeometry`."""
        return dataclasses.replace(super().geometry(size), attention=None, biases=False)

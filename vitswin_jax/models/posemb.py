"""Position embeddings of patch grids. Pure functions."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from vitswin_jax.types import UserError


@functools.lru_cache
def sincos_2d(
    height: int, width: int, *, embed_dim: int, temperature: float = 10_000.0
) -> Float[np.ndarray, "1 n embed_dim"]:
    """Returns fixed 2-D sin-cos embeddings of a grid, row-major, as in big_vision and MoCo v3.

    Channels are sin(x w), cos(x w), sin(y w), cos(y w), each embed_dim / 4 wide, with frequencies
    w = temperature^(-i / (embed_dim / 4 - 1)). Raises UserError where embed_dim is no multiple of 4
    or less than 8.
    """
    if embed_dim % 4 or embed_dim < 8:
        raise UserError(
            f"pos_embed='sincos2d' needs embed_dim a multiple of 4, >= 8, not {embed_dim}."
        )
    bands = embed_dim // 4
    frequency = temperature ** -(np.arange(bands) / (bands - 1))
    y, x = (axis.reshape(-1, 1) * frequency for axis in np.mgrid[:height, :width])
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return table[None].astype(np.float32)

"""Position embeddings of patch grids: those of table 8 of the ViT paper, and fixed ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.relative import RELATIVE_MLPS, mlp_biases
from vitswin_jax.nn.sides import Side, Size, of_sides
from vitswin_jax.nn.windows import relative_position_index

SINCOS = {"sincos2d": True, "sincos2d_mae": False}
"""`pos_embed` of fixed embeddings -> whether the last frequency is 1 / temperature."""

POS_EMBEDS = ("learned", "learned2d", *SINCOS, "relative", *RELATIVE_MLPS, "none")
POS_EMBED_PLACES = ("input", "every", "shared")


def sincos_2d(
    height: Side,
    width: Side,
    *,
    embed_dim: int,
    temperature: float = 10_000.0,
    endpoint: bool = True,
) -> Float[np.ndarray | Array, "1 n embed_dim"]:
    """Returns fixed 2-D sin-cos embeddings of a grid, row-major, as in big_vision and MoCo v3.

    Channels are sin(x w), cos(x w), sin(y w), cos(y w), each embed_dim / 4 wide, with frequencies
    w = temperature^(-i / (embed_dim / 4 - 1)), of which the last is 1 / temperature; with
    `endpoint=False`, as in MAE, it is not reached: temperature^(-i / (embed_dim / 4)). Raises
    UserError where embed_dim is no multiple of 4 or less than 8.
    """
    if embed_dim % 4 or embed_dim < 8:
        raise UserError(
            f"pos_embed='sincos2d' needs embed_dim a multiple of 4, >= 8, not {embed_dim}."
        )
    frequency = temperature ** -np.linspace(0.0, 1.0, embed_dim // 4, endpoint=endpoint)
    return _waves((height, width), tuple(frequency))


@of_sides
def _waves(xp: Any, size: Size, frequency: tuple[float, ...]) -> Float[np.ndarray | Array, "1 n c"]:
    mesh = xp.meshgrid(*map(xp.arange, size), indexing="ij")
    y, x = (axis.reshape(-1, 1) * np.asarray(frequency)[None] for axis in mesh)
    table = xp.concatenate([xp.sin(x), xp.cos(x), xp.sin(y), xp.cos(y)], axis=1)
    return table[None].astype(np.float32)


@functools.lru_cache
def relative_bias_index(grid: Size, prefix: int) -> Int[np.ndarray, "n n"]:
    """Returns the row of a table of relative biases for each (query, key) pair of tokens.

    Pairs of patches as in Swin's windows; three more rows are for a prefix token's look at a patch,
    a patch's at a prefix token, and prefix tokens' at each other (BEiT, arXiv:2106.08254).
    """
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    index = np.pad(relative_position_index(grid), ((prefix, 0), (prefix, 0)))
    index[:prefix], index[:, :prefix] = rows, rows + 1
    index[:prefix, :prefix] = rows + 2
    return index


def create_positions(
    param: Callable[..., Array],
    *,
    kind: str,
    grid: Size,
    prefix: int,
    embed_prefix: bool,
    embed_dim: int,
    num_heads: int,
    hidden_dim: int,
) -> Float[Array, "_ n _"]:
    """Returns the positions of `prefix` tokens and a grid of patches, from a module's `param`.

    Embeddings (1, n, embed_dim) of `kind` "learned", one for each token, or for each patch without
    `embed_prefix`; "learned2d", half the channels from the row and half from the column; or
    one of `SINCOS`, fixed. The last two leave prefix tokens at zero. "relative" gives biases
    (num_heads, n, n), a learned one for each offset, and `RELATIVE_MLPS` those of an MLP with
    `hidden_dim` channels.
    """
    if kind in RELATIVE_MLPS:
        return mlp_biases(
            kind, grid=grid, prefix=prefix, num_heads=num_heads, hidden_dim=hidden_dim
        )
    normal = nn.initializers.normal(0.02)
    if kind == "relative":
        index = relative_bias_index(grid, prefix)
        shape = (int(index.max()) + 1, num_heads)
        table = param("relative_position_bias_table", normal, shape, jnp.float32)
        return jnp.moveaxis(table[index], -1, 0)
    height, width = grid
    if kind == "learned":
        n = height * width + (prefix if embed_prefix else 0)
        table = param("pos_embed", normal, (1, n, embed_dim), jnp.float32)
    elif kind == "learned2d":
        half = embed_dim // 2
        rows = param("pos_embed_y", normal, (height, 1, half), jnp.float32)
        columns = param("pos_embed_x", normal, (1, width, embed_dim - half), jnp.float32)
        halves = (jnp.broadcast_to(t, (height, width, t.shape[-1])) for t in (rows, columns))
        table = jnp.concatenate(list(halves), -1).reshape(1, -1, embed_dim)
    else:
        endpoint = SINCOS[kind]
        table = jnp.asarray(sincos_2d(height, width, embed_dim=embed_dim, endpoint=endpoint))
    missing = prefix + height * width - table.shape[1]
    return jnp.pad(table, ((0, 0), (missing, 0), (0, 0)))

"""Relative position biases that a small MLP makes of offsets (Swin V2, arXiv:2111.09883, eq. 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import relative_position_index

table_init = nn.initializers.truncated_normal(0.02)


@functools.lru_cache
def log_spaced_coordinates(
    window_size: Size, pretrained_window_size: Size
) -> Float[np.ndarray, "rows 2"]:
    """Returns log-spaced offsets (dy, dx), one a row of V1's bias table (Swin V2, eq. 4).

    An offset of a whole window is 8 before the logarithm and 1 after it. Where
    `pretrained_window_size` is not 0, it is the whole window, so that a larger one extrapolates.
    """
    offsets = _offsets(window_size)
    whole = [
        max((before or side) - 1, 1)  # a window of one token has the offset 0 alone
        for side, before in zip(window_size, pretrained_window_size, strict=True)
    ]
    scaled = 8.0 * offsets / np.asarray(whole)
    return (np.sign(scaled) * np.log2(1 + np.abs(scaled)) / np.log2(8)).astype(np.float32)


@functools.lru_cache
def log_coordinates(window_size: Size) -> Float[np.ndarray, "rows 2"]:
    """Returns sign(d) ln(1 + |d|) of offsets (dy, dx), whatever the window (timm's Swin V2-CR)."""
    offsets = _offsets(window_size)
    return (np.sign(offsets) * np.log1p(np.abs(offsets))).astype(np.float32)


def _offsets(window_size: Size) -> Float[np.ndarray, "rows 2"]:
    offsets = np.mgrid[tuple(slice(1 - side, side) for side in window_size)]
    return offsets.reshape(2, -1).T.astype(np.float64)


class ContinuousPositionBias(nn.Module):
    """A small MLP from offsets to a bias per head, in place of a table (Swin V2, eq. 3)."""

    num_heads: int
    hidden_dim: int = 512
    use_out_bias: bool = False

    @nn.compact
    def __call__(self, offsets: Float[np.ndarray, "rows 2"]) -> Float[Array, "rows heads"]:
        """Returns biases, float32 whatever the model computes in."""
        dense = functools.partial(nn.Dense, kernel_init=table_init)
        x = jax.nn.relu(dense(self.hidden_dim, name="fc1")(offsets))
        return dense(self.num_heads, use_bias=self.use_out_bias, name="fc2")(x)


def bounded(table: Float[Array, "rows heads"]) -> Float[Array, "rows heads"]:
    """Returns biases in (0, 16), as Swin V2 has them."""
    return 16 * jax.nn.sigmoid(table)


Coordinates = Callable[[Size], Float[np.ndarray, "rows 2"]]

RELATIVE_MLPS: dict[str, tuple[Coordinates, bool]] = {
    "relative_mlp": (log_coordinates, False),
    "relative_mlp_swin": (lambda window: log_spaced_coordinates(window, (0, 0)), True),
}
"""`pos_embed` -> the coordinates of offsets, and whether biases are bounded and the MLP's second
layer has none, as in Swin V2."""


def mlp_biases(
    kind: str, *, grid: Size, prefix: int, num_heads: int, hidden_dim: int
) -> Float[Array, "heads n n"]:
    """Returns the biases of patches by their offsets; those of the `prefix` tokens are 0.

    Called in a module, whose submodule `cpb_mlp` is the MLP; `kind` is one of `RELATIVE_MLPS`.
    """
    coordinates, as_swin = RELATIVE_MLPS[kind]
    mlp = ContinuousPositionBias(num_heads, hidden_dim, not as_swin, name="cpb_mlp")
    table = mlp(coordinates(grid))
    table = bounded(table) if as_swin else table
    biases = jnp.moveaxis(table[relative_position_index(grid)], -1, 0)
    return jnp.pad(biases, ((0, 0), (prefix, 0), (prefix, 0)))

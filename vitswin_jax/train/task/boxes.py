"""Boxes (top, bottom, left, right) in images, as masks on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def inside_boxes(boxes: Int[Array, "n 4"], *, height: int, width: int) -> Bool[Array, "n h w"]:
    """Returns masks of (height, width) that are True inside each box."""
    top, bottom, left, right = (edge[:, None] for edge in boxes.T)
    y, x = jnp.arange(height)[None], jnp.arange(width)[None]
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    return rows[:, :, None] & columns[:, None, :]

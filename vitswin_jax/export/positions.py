"""Tables of positions that follow the size of the images, inside a program.

`weights.resize` has the methods in NumPy, for sizes that are known. Here are the same formulas in
JAX, for a grid whose sides are symbols: each gives an axis as a matrix (new, old).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.sides import Side, Size
from vitswin_jax.weights import resize

_REACH = 3
"""Samples beyond a border that a cubic kernel may read; they repeat the last one."""


def resized(
    table: Float[Array, "1 n c"] | Float[np.ndarray, "1 n c"],
    *,
    old: Size,
    new: Size,
    method: resize.Method,
) -> Float[Array, "1 m c"]:
    """Returns `resize.resize_pos_embed` of a table, in float32.

    On the table's own grid, `old`, it is the table itself.
    """
    prefix = table.shape[1] - old[0] * old[1]
    grid = jnp.asarray(table)[0, prefix:].reshape(*old, -1)
    form = formula(method)
    matrices = (
        jnp.where(_same(old, new), _nearest(before, after), form(before, after))
        for before, after in zip(old, new, strict=True)
    )
    rows, columns = matrices
    grid = jnp.einsum("ij,jkc->ikc", rows, grid)
    grid = jnp.einsum("ikc,lk->ilc", grid, columns)
    return jnp.concatenate([jnp.asarray(table)[:, :prefix], grid.reshape(1, -1, grid.shape[2])], 1)


def formula(method: resize.Method) -> Callable[[int, Side], Float[Array, "new old"]]:
    """Returns a method of `weights.resize` for sizes that may be symbols.

    Raises UserError for a method without such a form.
    """
    if method not in _FORMULAS:
        name = getattr(method, "__name__", str(method))
        raise UserError(
            f"--any-size: the source of the weights resizes positions by {name!r}, which has no "
            "form for an open size; export one file for each --img-size."
        )
    return _FORMULAS[method]


def _same(old: Size, new: Size) -> Array:
    rows, columns = (jnp.asarray(b) == a for a, b in zip(old, new, strict=True))
    return rows & columns


def _nearest(old: int, new: Side) -> Float[Array, "new old"]:
    """Returns the matrix that keeps a table where both sizes are equal."""
    return (jnp.arange(new)[:, None] == np.arange(old)[None]).astype(jnp.float32)


def _centres(old: int, new: Side, extra: float = 0.0) -> Float[Array, " new"]:
    """Returns the places of new pixel centres among the old ones, at the scale (new + extra) / old.

    With `extra` 0 they are exact where the sizes are equal.
    """
    return (jnp.arange(new) + 0.5) * (old / (new + extra)) - 0.5


def _cubic_rows(
    centres: Float[Array, " new"], old: int, *, a: float, support: Any = 1.0, clamp: bool
) -> Float[Array, "new old"]:
    """Returns cubic weights of old samples; beyond the border repeats it, or does not count."""
    reach = _REACH if clamp else 0
    taps = np.arange(-reach, old + reach, dtype=np.float32)
    weights = _cubic((taps[None] - centres[:, None]) / support, a)
    if clamp:
        inside = np.clip(taps, 0, old - 1)[:, None] == np.arange(old)[None]
        weights = weights @ inside.astype(np.float32)
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: Array, a: float) -> Array:
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0.0))


def _linear_rows(
    centres: Float[Array, " new"], old: int, *, support: Any = 1.0
) -> Float[Array, "new old"]:
    distance = jnp.abs(np.arange(old, dtype=np.float32)[None] - centres[:, None])
    weights = jnp.maximum(1 - distance / support, 0.0)
    return weights / weights.sum(1, keepdims=True)


def _support(old: int, new: Side) -> Array:
    return jnp.maximum(old / jnp.asarray(new, jnp.float32), 1.0)


def _corners(old: int, new: Side) -> Float[Array, " new"]:
    """Returns the places of new samples whose first and last stay where they are."""
    return jnp.arange(new) * ((old - 1) / jnp.maximum(jnp.asarray(new, jnp.float32) - 1, 1))


def _bicubic(old: int, new: Side, *, extra: float = 0.0) -> Array:
    return _cubic_rows(_centres(old, new, extra), old, a=-0.75, clamp=True)


def _bicubic_antialiased(old: int, new: Side) -> Array:
    support = _support(old, new)
    return _cubic_rows(_centres(old, new), old, a=-0.5, support=support, clamp=False)


def _bicubic_by_corners(old: int, new: Side) -> Array:
    return _cubic_rows(_corners(old, new), old, a=-0.75, clamp=True)


def _bilinear(old: int, new: Side) -> Array:
    return _linear_rows(jnp.clip(_centres(old, new), 0, old - 1), old)


def _bilinear_antialiased(old: int, new: Side) -> Array:
    return _linear_rows(_centres(old, new), old, support=_support(old, new))


def _corner_linear(old: int, new: Side) -> Array:
    return _linear_rows(_corners(old, new), old)


_FORMULAS: Mapping[resize.Method, Callable[[int, Side], Array]] = {
    resize.bicubic: _bicubic,
    resize.bicubic_by_scale: functools.partial(_bicubic, extra=0.1),
    resize.bicubic_antialiased: _bicubic_antialiased,
    resize.bicubic_by_corners: _bicubic_by_corners,
    resize.bilinear: _bilinear,
    resize.bilinear_antialiased: _bilinear_antialiased,
    resize.corner_linear: _corner_linear,
}

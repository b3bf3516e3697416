"""Image sizes that change during training (progressive resizing, arXiv:2104.00298).

The parameters are always those of the model at its own `img_size`. A step at another size resizes
tables of positions on the way to the model, as loading the run's weights at that size does, and
gradients return through it; so optimizer, average and checkpoints never change shape.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array

from vitswin_jax.core.types import Params, UserError, listed
from vitswin_jax.models.unlabelled import UnlabelledModel, with_encoder
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.adapt import Methods, Sizes
from vitswin_jax.weights.resize import Method
from vitswin_jax.weights.shapes import parameter_shapes, sizes_of

Size = tuple[int, int]
Schedule = tuple[tuple[int, Size], ...]
"""(the first batch, the image size of it and of those that follow)."""

KEY = "data.img_sizes"
_TABLES = ("pos_embed", "absolute_pos_embed", "relative_position_bias_table")
_METHODS = Methods()


def make_sizes(img_sizes: Sequence[Any], model: nn.Module, *, steps_per_epoch: float) -> Schedule:
    """Returns the schedule of `config.data.img_sizes`, ((epoch, size), ...); () is the model's own.

    A batch that straddles two epochs has the size of the one in which it begins. Raises UserError
    for entries that are not in order, and for sizes that the model cannot have.
    """
    own = pair(model.img_size)
    if not img_sizes:
        return ((0, own),)
    _check_entries(img_sizes)
    sizes = []
    for epoch, size in img_sizes:
        sizes.append((math.ceil(round(epoch * steps_per_epoch, 6)), pair(size)))
        at_size(model, pair(size))
    return tuple(sizes)


def _check_entries(img_sizes: Sequence[Any]) -> None:
    example = "such as ((0, 128), (20, 160), (40, (224, 160)))"
    try:
        epochs = [float(epoch) for epoch, _ in img_sizes]
        sides = [side for _, size in img_sizes for side in pair(size)]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{KEY}={img_sizes!r} must be pairs (epoch, image size) in order, {example}."
        ) from error
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"{KEY}={img_sizes!r}: sizes must be whole numbers above 0, {example}.")
    if epochs[0] != 0 or any(b <= a for a, b in itertools.pairwise(epochs)):
        raise UserError(f"{KEY}={img_sizes!r}: epochs must start at 0 and increase, {example}.")


def parts(sizes: Schedule, start: int, stop: int) -> Iterator[tuple[int, int, Size]]:
    """Yields (first, end, size) of the batches from `start` to `stop`, those of one size each."""
    ends = [first for first, _ in sizes[1:]] + [stop]
    for (first, size), end in zip(sizes, ends, strict=True):
        if max(first, start) < min(end, stop):
            yield max(first, start), min(end, stop), size


def at_size(
    model: nn.Module, size: Size, *, key: str = KEY
) -> tuple[nn.Module, Callable[[Params], Params] | None]:
    """Returns a model for another image size, and what makes its parameters of the model's.

    None: they are the same. Raises UserError, which names `key`, for a size that the model cannot
    have.
    """
    if size == pair(model.img_size):
        return model, None
    sized = with_encoder(model, img_size=size)
    encoder, other = _encoder(model), _encoder(sized)
    try:
        other.check()
        ours, theirs = parameter_shapes(model), parameter_shapes(sized)
    except UserError as error:
        raise UserError(f"{key}: {size[0]}x{size[1]}: {error}") from error
    changed = [name for name in ours if theirs.get(name) != ours[name]]
    if others := [name for name in changed if name.rpartition("/")[2] not in _TABLES]:
        raise UserError(
            f"{key}: {size[0]}x{size[1]} would change the shape of {listed(others)}; "
            "choose another size."
        )
    fit = functools.partial(fit_params, old=sizes_of(encoder), new=sizes_of(other))
    return sized, fit if changed else None


def _encoder(model: nn.Module) -> nn.Module:
    return model.encoder if isinstance(model, UnlabelledModel) else model


def fit_params(params: Params, *, old: Sizes, new: Sizes) -> Params:
    """Returns parameters with the tables of positions of another size; differentiable."""
    flat = flatten_dict(params, sep="/")
    for name, leaf in flat.items():
        kind = name.rpartition("/")[2]
        if kind == "pos_embed" and old.grid != new.grid:
            flat[name] = _resize_tokens(leaf, old.grid, new.grid)
        elif kind == "absolute_pos_embed" and old.grid != new.grid:
            flat[name] = _resize(leaf, new.grid, _METHODS.pos_embed)
        elif kind == "relative_position_bias_table":
            before, after = old.window_of(name), new.window_of(name)
            flat[name] = leaf if before == after else _resize_biases(leaf, before, after)
    return unflatten_dict(flat, sep="/")


def _resize(maps: Array, size: Size, method: Method) -> Array:
    """Returns maps (..., h, w, c) on another grid."""
    rows, columns = (
        jnp.asarray(method(before, after), maps.dtype)
        for before, after in zip(maps.shape[-3:-1], size, strict=True)
    )
    precise = lax.Precision.HIGHEST
    return jnp.einsum("ij,...jkc,lk->...ilc", rows, maps, columns, precision=precise)


def _resize_tokens(table: Array, old: Size, new: Size) -> Array:
    """Returns positions (1, n, c) on another grid; those of prefix tokens stay the same."""
    prefix = table.shape[-2] - old[0] * old[1]
    grid = table[..., prefix:, :].reshape(1, *old, -1)
    grid = _resize(grid, new, _METHODS.pos_embed).reshape(1, new[0] * new[1], -1)
    return jnp.concatenate([table[..., :prefix, :], grid], axis=-2)


def _resize_biases(table: Array, old: Size, new: Size) -> Array:
    """Returns biases (..., rows, heads) of another window; those of prefix tokens stay the same."""
    (h, w), size = ((2 * a - 1, 2 * b - 1) for a, b in (old, new))
    lead, heads = table.shape[:-2], table.shape[-1]
    grid = table[..., : h * w, :].reshape(*lead, h, w, heads)
    grid = _resize(grid, size, _METHODS.bias_table).reshape(*lead, size[0] * size[1], heads)
    return jnp.concatenate([grid, table[..., h * w :, :]], axis=-2)

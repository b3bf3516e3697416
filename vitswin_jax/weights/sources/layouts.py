"""Layouts of arrays in an original and in ours: transposed, reshaped, or the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class How:
    """The layouts of an original's array and of ours; no number is changed."""

    shape: Callable[[Shape], Shape]
    """Their shape, from ours."""
    read: Callable[[np.ndarray, np.ndarray], None]
    """Copies theirs into ours, which may be a part of a larger array and of another type."""
    write: Callable[[np.ndarray], np.ndarray]
    """Ours as theirs."""


def _dense(inputs: int) -> How:
    """Returns PyTorch's (out, in) as ours, whose first `inputs` axes are the input's."""

    def flat(shape: Shape) -> Shape:
        return math.prod(shape[:inputs]), math.prod(shape[inputs:])

    return How(
        shape=lambda shape: flat(shape)[::-1],
        read=lambda theirs, ours: _transpose(theirs, ours.reshape(flat(ours.shape), copy=False)),
        write=lambda ours: _transposed(ours.reshape(flat(ours.shape))),
    )


def _transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """Copies a transposed matrix, strip by strip, as caches hold: 7x faster than in one go."""
    for start in range(0, len(matrix), 16):
        strip = matrix[start : start + 16].astype(
            out.dtype, copy=False
        )  # cast while it is contiguous
        out[:, start : start + 16] = strip.T


def _transposed(matrix: np.ndarray) -> np.ndarray:
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    _transpose(matrix, out)
    return out


def _copy(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], None]:
    """Returns a `How.read` of a view of theirs that has the shape of ours."""

    def read(theirs: np.ndarray, ours: np.ndarray) -> None:
        ours[...] = change(theirs)

    return read


def _reshaped(shape: Callable[[Shape], Shape]) -> How:
    return How(
        shape=shape,
        read=lambda theirs, ours: np.copyto(ours, theirs.reshape(ours.shape), casting="unsafe"),
        write=lambda ours: ours.reshape(shape(ours.shape)),
    )


same = _reshaped(lambda shape: shape)
vector = _reshaped(lambda shape: (math.prod(shape),))  # heads and head_dim, side by side
row = _reshaped(lambda shape: (1, *shape))
unbatched = _reshaped(lambda shape: shape[1:])
map_vector = _reshaped(lambda shape: (1, 1, 1, *shape))  # broadcast over batch, height and width
tokens = _reshaped(lambda shape: (shape[0], math.prod(shape[1:-1]), shape[-1]))  # of a map
dense = _dense(1)
dense_out = _dense(2)  # of attention: (heads, head_dim) in
stacked = How(  # (experts, out, in) and (experts, in, out)
    shape=lambda shape: (shape[0], shape[2], shape[1]),
    read=_copy(lambda theirs: theirs.transpose(0, 2, 1)),
    write=lambda ours: ours.transpose(0, 2, 1),
)
grouped = How(  # (groups * out, in, 1), a convolution over nothing, and (groups, in, out)
    shape=lambda shape: (shape[0] * shape[2], shape[1], 1),
    read=lambda theirs, ours: stacked.read(theirs.reshape(len(ours), -1, ours.shape[1]), ours),
    write=lambda ours: ours.transpose(0, 2, 1).reshape(-1, ours.shape[1], 1),
)
conv = How(  # OIHW and HWIO
    shape=lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    read=_copy(lambda theirs: theirs.transpose(2, 3, 1, 0)),
    write=lambda ours: ours.transpose(3, 2, 0, 1),
)

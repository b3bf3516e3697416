"""Tensors that stay in their file until they are asked for, so that no file is ever held twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from vitswin_jax.core.types import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
LOW_PRECISION = (BFLOAT16, *FLOAT8.values())
"""Floating-point types that numpy does not know as such."""


@dataclass(frozen=True)
class Tensor:
    """What a file says of a tensor, and how to read it: fresh memory each time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None
    """Reads rows [start, stop) alone, where they lie side by side."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        """Returns an array that is in memory as a Tensor."""
        return cls(array.shape, array.dtype, lambda: array)

    def map(self, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Tensor:
        """Returns the tensor that `change` makes of this one, which has `shape`; still unread."""
        return Tensor(shape, self.dtype, lambda: change(self.read()))

    @classmethod
    def joined(cls, parts: Sequence[Tensor]) -> Tensor:
        """Returns tensors one after the other along the first axis, still unread."""
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return cls(shape, parts[0].dtype, lambda: np.concatenate([part.read() for part in parts]))

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns [start, stop) of the first axis, still unread."""
        rows = self.read_rows or (lambda start, stop: self.read()[start:stop])
        return Tensor((stop - start, *self.shape[1:]), self.dtype, lambda: rows(start, stop))

    def row(self, index: int) -> Tensor:
        """Returns one index of the first axis, still unread."""
        return self.rows(index, index + 1).map(lambda rows: rows[0], self.shape[1:])


def is_float(tensor: Tensor) -> bool:
    """Returns whether a tensor holds floating-point numbers, of however few bits."""
    return tensor.dtype.kind == "f" or tensor.dtype in LOW_PRECISION


Tensors = Mapping[str, Tensor]
"""A state dict: flat names to unread tensors."""


def read_bytes(path: Path, offset: int, size: int) -> np.ndarray:
    """Returns bytes of a file as uint8; raises UserError where they are not there."""
    data = np.fromfile(path, np.uint8, size, offset=offset)
    if data.size != size:
        raise UserError(f"{path}: ends after {offset + data.size} bytes, inside a tensor.")
    return data


def stored(
    read_at: Callable[[int, int], np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> Tensor:
    """Returns the row-major tensor whose bytes `read_at(offset, size)` gives, as uint8."""

    def read() -> np.ndarray:
        return read_at(0, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    def read_rows(start: int, stop: int) -> np.ndarray:
        width = math.prod(shape[1:]) * dtype.itemsize
        data = read_at(start * width, (stop - start) * width)
        return data.view(dtype).reshape(stop - start, *shape[1:])

    return Tensor(shape, dtype, read, read_rows)


def damaged(path: Path, kind: str, error: Exception | str) -> UserError:
    """Returns the one-line error for a file that is not what it seems to be."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"{path}: cannot be read as {kind} ({reason}); it may be damaged, or cut short by an "
        "interrupted copy."
    )

"""Tensors that stay in their file until they are asked for, so that no file is ever held twice."""

from __future__ import annotations

import functools
import math
import os
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from vitswin_jax.core.types import Shapes, UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
LOW_PRECISION = (BFLOAT16, *FLOAT8.values())
"""Floating-point types that numpy does not know as such."""

DIMENSIONS = 32
"""How many axes a tensor may have."""

_CHUNK = 1 << 22  # bytes that are checked at a time


class DamageError(ValueError):
    """A contradiction in a file, in our words; `damaged` makes one line of it."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its shape and dtype, and a reader that returns fresh memory each time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None
    """Reads rows [start, stop) alone, where they lie side by side."""
    fill: Callable[[np.ndarray], None] | None = None
    """Copies the numbers into an array, where that takes less memory than copying what is read."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def claim(self) -> int:
        """The bytes that the shape claims; an axis without elements counts as one with one."""
        return math.prod(max(1, n) for n in self.shape) * max(1, self.dtype.itemsize)

    def read_into(self, array: np.ndarray) -> None:
        """Copies the numbers into an array of this shape, which may be of another type."""
        if self.fill is not None:
            self.fill(array)
        else:
            array[...] = self.read()

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


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Returns the shapes of unread tensors."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def is_float(tensor: Tensor) -> bool:
    """Returns whether a tensor holds floating-point numbers, of however few bits."""
    return tensor.dtype.kind == "f" or tensor.dtype in LOW_PRECISION


Tensors = Mapping[str, Tensor]
"""A state dict: flat names to unread tensors."""

Read = Callable[[int, int], np.ndarray]
"""From (offset, size) to that part of some bytes, as uint8."""


def allowance(path: Path) -> int:
    """Returns the bytes that a file may make of itself: 8 times its size, and 64 MiB.

    Tensors that share a storage, and compressed ones, are larger than their part of the file.
    Weights compress by less than 2, a hostile file by 1000.
    """
    return 8 * path.stat().st_size + (64 << 20)


def check_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises DamageError for names that cannot be printed and sizes that a file cannot have."""
    total = 0
    for name, tensor in tensors:
        if not name.isprintable():
            raise DamageError(f"the name {name[:40]!a} cannot be printed")
        if min(tensor.shape, default=0) < 0 or len(tensor.shape) > DIMENSIONS:
            raise DamageError(f"{name[:80]} has an impossible shape")
        total += tensor.claim
    check_size(path, total)


def check_size(path: Path, size: int) -> None:
    """Raises DamageError where tensors of `size` bytes are more than a file can make."""
    if size > allowance(path):
        raise DamageError("its tensors claim more than 8 times its size and 64 MiB")


class Held:
    """A file that is held open: a run may put a newer one in its place while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def again(self) -> Path:
        """A path by which a library opens the same file, where the system has one."""
        path = Path(f"/dev/fd/{self._descriptor}")
        return path if path.exists() else self.path

    def read(self, offset: int, size: int) -> np.ndarray:
        """Returns at most `size` bytes as uint8, of fresh memory; threads may call it."""
        data, done = np.empty(size, np.uint8), 0
        while done < size and (
            count := os.preadv(self._descriptor, [data.data[done:]], offset + done)
        ):
            done += count
        return data[:done]


def read_bytes(path: Path | Held, offset: int, size: int) -> np.ndarray:
    """Returns bytes of a file as uint8; raises UserError where they are not there."""
    if isinstance(path, Held):
        data, name = path.read(offset, size), path.path
    else:
        data, name = np.fromfile(path, np.uint8, size, offset=offset), path
    if data.size != size:
        raise UserError(f"{name}: ends after {offset + data.size} bytes, inside a tensor.")
    return data


def part_reader(
    path: Path | Held, start: int, size: int, *, name: str, checksum: int | None = None
) -> Read:
    """Returns a function that reads parts of the `size` bytes that lie at `start` of a file.

    Its first call compares the CRC-32 of all of them with `checksum` (None: there is none), and
    raises UserError, which names `name`, where they differ.
    """
    return _Part(path, start, size, name, checksum)


@dataclass
class _Part:
    """Bytes of a file, and the checksum that they are still to be compared with."""

    path: Path | Held
    start: int
    size: int
    name: str
    checksum: int | None

    def __call__(self, offset: int, count: int) -> np.ndarray:
        path, start = self.path, self.start
        data = read_bytes(path, start + offset, count)
        checksum = self.checksum  # once: another thread may have compared it meanwhile
        if checksum is not None:
            crc = zlib.crc32(data.data, _crc32(path, start, start + offset))
            if _crc32(path, start + offset + count, start + self.size, crc) != checksum:
                raise wrong_checksum(path, self.name)
            self.checksum = None
        return data


def _crc32(path: Path | Held, start: int, stop: int, crc: int = 0) -> int:
    for offset in range(start, stop, _CHUNK):
        crc = zlib.crc32(read_bytes(path, offset, min(_CHUNK, stop - offset)).data, crc)
    return crc


def wrong_checksum(path: Path | Held, name: str) -> UserError:
    """Returns the one-line error for bytes that changed since they were written."""
    path = path.path if isinstance(path, Held) else path
    return UserError(
        f"{path}: is damaged: the checksum of {name[:80]} is wrong; copy or download it again."
    )


def stored(read_at: Read, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """Returns the row-major tensor whose bytes `read_at(offset, size)` gives, as uint8."""
    return Tensor(
        shape,
        dtype,
        functools.partial(_read_whole, read_at, shape, dtype),
        functools.partial(_read_rows, read_at, shape, dtype),
    )


def _read_whole(read_at: Read, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return read_at(0, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def _read_rows(
    read_at: Read, shape: tuple[int, ...], dtype: np.dtype, start: int, stop: int
) -> np.ndarray:
    width = math.prod(shape[1:]) * dtype.itemsize
    data = read_at(start * width, (stop - start) * width)
    return data.view(dtype).reshape(stop - start, *shape[1:])


def damaged(path: Path, kind: str, error: Exception | None = None) -> UserError:
    """Returns the one-line error for a file that is not what it seems to be.

    Only a `DamageError` has words for the user; the text of any other exception is left out.
    """
    reason = ""
    if isinstance(error, DamageError):
        reason = f" ({error})"
    elif isinstance(error, zipfile.BadZipFile | zlib.error):
        reason = " (a checksum or a header of its zip members is wrong)"
    return UserError(
        f"{path}: cannot be read as {kind}{reason}; it may be damaged, or cut short by an "
        "interrupted copy."
    )

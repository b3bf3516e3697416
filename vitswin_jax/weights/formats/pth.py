"""PyTorch's files without PyTorch: the zip layout, the legacy one, and plain pickles of arrays.

A `.pth` is a pickle, and a pickle is a program that may import and call anything. Here it may not:
the few names that build tensors mean functions of ours, every other name means `Stub`, which takes
any arguments and does nothing, and object state is dropped unread. The unpickler is Python's own
slow one, for the fast one takes as much memory for its memo as a number in the file asks for.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.tensors import BFLOAT16, Tensor, damaged, read_bytes

MAGIC = 0x1950A86A20F9469CFC6C  # the first object of the legacy layout
DTYPES = {
    "Double": np.dtype(np.float64), "Float": np.dtype(np.float32), "Half": np.dtype(np.float16),
    "BFloat16": BFLOAT16, "Long": np.dtype(np.int64), "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16), "Char": np.dtype(np.int8), "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
}  # fmt: skip


class Stub:
    """Stands for an object of any class but tensors: holds nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        """Ignores what the object would have been made of."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, item: Any) -> None:
        """Ignores an item."""

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        """Ignores a call of what an unknown function would have returned."""
        return self

    extend = add = append


def _missing(offset: int, size: int) -> np.ndarray:
    raise ValueError("a storage is missing")


@dataclass
class _Storage:
    """A run of elements in the file, which tensors are views of."""

    dtype: np.dtype
    count: int
    read: Callable[[int, int], np.ndarray] = _missing  # bytes [offset, offset + size)


def read_pth(path: Path) -> Any:
    """Returns the object in a PyTorch file: containers, numbers and strings, with unread Tensors.

    Objects of other classes are `Stub`s. Nothing that the file names is executed. Raises UserError
    for a file that is damaged, cut short, or no PyTorch file.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with path.open("rb") as file:
            return _read_legacy(path, file)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise damaged(path, "a PyTorch file", error) from error


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip file without data.pkl, so not PyTorch's.")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise UserError(f"{path}: has big-endian tensors; save it again on a usual machine.")

        def load_storage(pid: Any) -> _Storage:
            _, dtype, key, _, count = pid
            info = names[f"{root}data/{key}"]
            if info.file_size < count * dtype.itemsize:
                raise ValueError(f"storage {key} is shorter than it should be")
            return _Storage(dtype, count, zip_member_reader(path, file, info))

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), load_storage).load()


def zip_member_reader(
    path: Path, file: io.BufferedIOBase, info: zipfile.ZipInfo
) -> Callable[[int, int], np.ndarray]:
    """Returns a function that reads (offset, size) bytes of a zip's member, straight where it can.

    Raises ValueError where the member lies beyond the file's end.
    """
    if info.compress_type != zipfile.ZIP_STORED:

        def inflate(offset: int, size: int) -> np.ndarray:
            with zipfile.ZipFile(path) as archive:
                return np.frombuffer(archive.read(info), np.uint8)[offset : offset + size]

        return inflate
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + name + extra
    if start + info.file_size > file.seek(0, 2):
        raise ValueError(f"{info.filename} is cut short")
    return _reader(path, start)


def _reader(path: Path, start: int) -> Callable[[int, int], np.ndarray]:
    """Returns a function to `size` bytes of a file, `offset` after `start`."""
    return lambda offset, size: read_bytes(path, start + offset, size)


def _read_legacy(path: Path, file: io.BufferedIOBase) -> Any:
    storages: dict[str, _Storage] = {}

    def load_storage(pid: Any) -> _Storage:
        _, dtype, key, _, count, *view = pid
        storage = storages.setdefault(key, _Storage(dtype, count))
        if not view or view[0] is None:
            return storage
        _, offset, size = view[0]
        return _Storage(dtype, size, lambda at, n: storage.read(at + offset * dtype.itemsize, n))

    def load() -> Any:
        return _Unpickler(file, load_storage).load()

    first = load()
    if first != MAGIC:
        return first  # a plain pickle
    if load() != 1001:
        raise ValueError("of an unknown version")
    if not load().get("little_endian", True):
        raise UserError(f"{path}: has big-endian tensors; save it again on a usual machine.")
    result, keys = load(), load()
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        start, storage = file.tell(), storages[key]
        size = count * storage.dtype.itemsize
        if count < storage.count or file.seek(0, 2) < start + size:
            raise ValueError(f"storage {key} is cut short")
        storage.read = _reader(path, start)
        file.seek(start + size)
    if missing := storages.keys() - set(keys):
        raise ValueError(f"{len(missing)} storages are missing")
    return result


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise ValueError("a tensor without a storage")
    if min((offset, *shape, *strides), default=0) < 0:
        raise ValueError("a tensor with negative sizes")
    shape, dtype, width = tuple(shape), storage.dtype, storage.dtype.itemsize
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    reach = reach if all(shape) else 0
    if reach and offset + reach > storage.count:
        raise ValueError("a tensor larger than its storage")

    def read() -> np.ndarray:
        if not reach:
            return np.zeros(shape, dtype)
        flat = storage.read(offset * width, reach * width).view(dtype)
        steps = tuple(step * width for step in strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    return Tensor(shape, dtype, read)


def _drop_state(unpickler: Any) -> None:
    unpickler.stack.pop()


class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: _drop_state}

    def __init__(self, file: io.BufferedIOBase, load_storage: Callable[[Any], _Storage]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")  # of Python 2's strings
        self._load_storage = load_storage

    def persistent_load(self, pid: Any) -> _Storage:
        if pid[0] != "storage" or not isinstance(pid[1], np.dtype):
            raise ValueError(f"a storage of unknown type {pid[1]!r}")
        return self._load_storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            return DTYPES.get(name.removesuffix("Storage"), name)
        return _KNOWN.get((module, name), Stub)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
}

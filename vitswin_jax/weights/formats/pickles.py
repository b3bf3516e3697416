"""Pickles of tensors, read without executing anything, in time and memory that the file bounds.

A pickle is a program that may import and call anything. Here it may not: the few names that build
tensors mean functions of ours, every other name means `Stub`, which takes any arguments and does
nothing, and object state is dropped unread. The unpickler is Python's own slow one, for the fast
one takes as much memory for its memo as a number in the file asks for.

A pickle may also claim sizes and share its parts. So no read is longer than what is left of the
file, frames are not followed, steps are counted, only texts and integers are keys (hashing a tuple
of tuples may take for ever), and the tree that comes out is measured as it unfolds.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.weights.formats.tensors import (
    BFLOAT16,
    DIMENSIONS,
    DamageError,
    Read,
    Tensor,
    check_size,
)

STEPS = 2_000_000
"""How often a pickle may be read from: a model and its optimizer of 1,000 tensors take 0.2 million,
and a list for each step 150 MB of memory."""

_SMALL = 1 << 16  # bytes: no read of fewer, and no line of text, is compared with the file's size

DEPTH = 64
"""How deeply containers may be nested."""

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

    def append(self, item: Any) -> None:
        """Ignores an item."""

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        """Ignores a call of what an unknown function would have returned."""
        return self

    extend = add = append


def _missing(offset: int, size: int) -> np.ndarray:
    raise DamageError("a storage is missing")


@dataclass
class Storage:
    """A run of elements in the file, which tensors are views of."""

    dtype: np.dtype
    count: int
    read: Read = _missing


def unpickle(file: io.BufferedIOBase, load_storage: Callable[..., Storage]) -> Any:
    """Returns the object that a file has at its place: containers, numbers, texts, unread Tensors.

    `load_storage(dtype, key, count, view)` is called for each reference to a storage. Whatever is
    wrong with the pickle raises some exception.
    """
    return _Unpickler(_Bounded(file), load_storage).load()


def check_tree(path: Path, tree: Any) -> int:
    """Returns the bytes of the tensors in a tree; raises DamageError where a file can hold no such.

    A part that several others share counts as often as it is found.
    """
    found: dict[int, tuple[int, int, int]] = {}  # of containers: height, parts, bytes

    def measure(node: Any, depth: int) -> tuple[int, int, int]:
        if isinstance(node, Tensor):
            return 0, 1, node.claim
        if not isinstance(node, dict | list | tuple):
            return 0, 1, 0
        if id(node) not in found:
            if depth == DEPTH:
                raise DamageError(f"it is nested more than {DEPTH} deep, or within itself")
            height, parts, size = 0, 1, 0
            for child in node.values() if isinstance(node, dict) else node:
                below = measure(child, depth + 1)
                height = max(height, below[0] + 1)
                parts, size = parts + below[1], size + below[2]
            found[id(node)] = height, parts, size
        return found[id(node)]

    height, parts, size = measure(tree, 0)
    if height > DEPTH or parts > STEPS:
        raise DamageError(f"it unfolds to more than {DEPTH} levels, or {STEPS:,} parts")
    check_size(path, size)
    return size


class _Bounded:
    """A file whose reads are no longer than what is left of it, and counted."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        place = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(place)
        self._left = STEPS

    def read(self, size: int) -> bytes:
        self._count()
        if size > _SMALL:
            size = min(size, self._end - self._file.tell())
        return self._file.read(size)

    def readline(self) -> bytes:
        self._count()
        return self._file.readline(_SMALL)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise DamageError(f"its pickle takes more than {STEPS:,} steps")


def _drop_state(unpickler: Any) -> None:
    unpickler.stack.pop()


def _skip_frame(unpickler: Any) -> None:
    unpickler.read(8)


def _new_dict(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    unpickler.append({})
    _set(unpickler, items)


def _set_item(unpickler: Any) -> None:
    value, key = unpickler.stack.pop(), unpickler.stack.pop()
    _set(unpickler, [key, value])


def _set_items(unpickler: Any) -> None:
    _set(unpickler, unpickler.pop_mark())


def _set(unpickler: Any, items: list[Any]) -> None:
    target = unpickler.stack[-1]
    if isinstance(target, dict):
        target.update(_named(zip(items[::2], items[1::2], strict=True)))
    elif not isinstance(target, Stub):
        raise DamageError("items of no dict")


def _new_set(unpickler: Any) -> None:
    unpickler.append(Stub())


def _new_frozenset(unpickler: Any) -> None:
    unpickler.pop_mark()
    unpickler.append(Stub())


def _new_bytearray(unpickler: Any) -> None:
    unpickler.load_binbytes8()


class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: _drop_state,
        pickle.FRAME[0]: _skip_frame,
        pickle.DICT[0]: _new_dict,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.EMPTY_SET[0]: _new_set,
        pickle.FROZENSET[0]: _new_frozenset,
        pickle.BYTEARRAY8[0]: _new_bytearray,
    }

    def __init__(self, file: _Bounded, load_storage: Callable[..., Storage]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")  # of Python 2's strings
        self._load_storage = load_storage

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 4:
            raise DamageError("a reference to no storage")
        if pid[0] == "module":  # of the legacy layout: a class and its source
            return pid[1]
        _, dtype, key, _, count, *view = pid
        if isinstance(dtype, str):
            raise DamageError(f"a tensor of the type {dtype[:40]!a}, which is not read")
        if not isinstance(dtype, np.dtype) or type(key) is not str:
            raise DamageError("a reference to no storage")
        return self._load_storage(dtype, key, _natural(count), view[0] if view else None)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage", "torch.cuda") and name.endswith("Storage"):
            return DTYPES.get(name.removesuffix("Storage"), name)
        return _KNOWN.get((module, name), Stub)


def _named(items: Iterable[tuple[Any, Any]]) -> dict[str | int, Any]:
    """Returns the items whose keys are names or indices; no model is under any other key."""
    return {
        key: value
        for key, value in items
        if (type(key) is str and key.isprintable()) or (type(key) is int and abs(key) < 1 << 63)
    }


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise DamageError("a size that is no natural number")
    return value


def _ordered_dict(items: Any = ()) -> dict[str | int, Any]:
    """Returns the dict of a list of pairs, as Python 2 has it, and empties the list.

    Otherwise a pickle could copy one list again and again.
    """
    if not isinstance(items, list):
        return {}
    made = _named((key, value) for key, value in items)
    items.clear()
    return made


def _size(items: Any) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list) or len(items) > DIMENSIONS:
        raise DamageError("a size of too many numbers")
    return tuple(items)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise DamageError("a tensor without a storage")
    shape, strides = (tuple(map(_natural, _size(numbers))) for numbers in (shape, strides))
    if len(shape) != len(strides):
        raise DamageError("a tensor with fewer strides than axes, or more")
    dtype, width = storage.dtype, storage.dtype.itemsize
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    reach = reach if all(shape) else 0
    if reach and _natural(offset) + reach > storage.count:
        raise DamageError("a tensor larger than its storage")

    def read() -> np.ndarray:
        if not reach:
            return np.zeros(shape, dtype)
        flat = storage.read(offset * width, reach * width).view(dtype)
        steps = tuple(step * width for step in strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

    return Tensor(shape, dtype, read)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
}

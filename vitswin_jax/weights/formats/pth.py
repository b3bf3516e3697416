"""PyTorch's files without PyTorch: the zip layout, the legacy one, and plain pickles of arrays."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError, listed
from vitswin_jax.weights.formats.foreign import refuse_zip
from vitswin_jax.weights.formats.pickles import Storage, Stub, check_tree, unpickle
from vitswin_jax.weights.formats.tensors import DamageError, damaged, part_reader
from vitswin_jax.weights.formats.zipped import member_reader, members_of

MAGIC = 0x1950A86A20F9469CFC6C  # the first object of the legacy layout


def read_pth(path: Path) -> Any:
    """Returns the object in a PyTorch file: containers, numbers and strings, with unread Tensors.

    Objects of other classes are `Stub`s, and keys are texts and integers. Nothing that the file
    names is executed. Raises UserError for a file that is damaged, cut short, or no PyTorch file.
    """
    try:
        tree = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        size = check_tree(path, tree)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise damaged(path, "a PyTorch file", error) from error
    if not size:
        _refuse_objects(path, tree)
    return tree


def _refuse_objects(path: Path, tree: Any) -> None:
    """Raises UserError for a file without tensors that has other objects instead."""
    items = tree.items() if isinstance(tree, dict) else ()
    keys = [str(key) for key, value in items if isinstance(value, Stub)]
    if keys or isinstance(tree, Stub):
        under = f", under {listed(keys)}" if keys else ""
        raise UserError(
            f"{path}: has no tensor, but a whole pickled object{under}, such as a module, whose "
            "classes would have to be executed; load it with its own code and save its "
            "state_dict()."
        )


def _read_zip(path: Path) -> Any:
    members = members_of(path)
    refuse_zip(path, members)
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"{path}: a zip file without data.pkl, so not PyTorch's.")
    root = pickles[0].removesuffix("data.pkl")
    # torch.save may be asked for no checksums: then all are 0.
    checked = any(info.CRC for info in members.values())

    def read(name: str) -> bytes:
        info = members[name]
        return member_reader(path, info, checked=checked)(0, info.file_size).tobytes()

    if root + "byteorder" in members and read(root + "byteorder") != b"little":
        raise _big_endian(path)

    def load_storage(dtype: np.dtype, key: str, count: int, view: Any) -> Storage:
        info = members[f"{root}data/{key}"]
        if info.file_size < count * dtype.itemsize:
            raise DamageError("a storage is shorter than it should be")
        return Storage(dtype, count, member_reader(path, info, checked=checked))

    return unpickle(io.BytesIO(read(pickles[0])), load_storage)


def _big_endian(path: Path) -> UserError:
    return UserError(f"{path}: has big-endian tensors; save it again on a usual machine.")


def _read_legacy(path: Path) -> Any:
    storages: dict[str, Storage] = {}

    def load_storage(dtype: np.dtype, key: str, count: int, view: Any) -> Storage:
        storage = storages.setdefault(key, Storage(dtype, count))
        if view is None:
            return storage
        _, offset, size = view
        if offset < 0 or size < 0 or offset + size > storage.count:
            raise DamageError("a part of a storage that is larger than it")
        return Storage(dtype, size, lambda at, n: storage.read(at + offset * dtype.itemsize, n))

    with path.open("rb") as file:
        first = unpickle(file, load_storage)
        if first != MAGIC:
            return first  # a plain pickle
        if unpickle(file, load_storage) != 1001:
            raise DamageError("it is of an unknown version")
        if not unpickle(file, load_storage).get("little_endian", True):
            raise _big_endian(path)
        result, keys = unpickle(file, load_storage), unpickle(file, load_storage)
        if not isinstance(keys, list) or any(type(key) is not str for key in keys):
            raise DamageError("its list of storages is no list of names")
        end = path.stat().st_size
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            start, storage = file.tell(), storages[key]
            size = count * storage.dtype.itemsize
            if count < storage.count or start + size > end:
                raise DamageError("a storage is cut short")
            storage.read = part_reader(path, start, size, name=key)
            file.seek(start + size)
    if storages.keys() - set(keys):
        raise DamageError("storages are missing")
    return result

"""Writes a state dict as torch.save does, without PyTorch."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.core.atomic import replacing
from vitswin_jax.weights.formats.pickles import DTYPES

ALIGNMENT = 64  # of storages in the file, as torch has it, so that they may be memory-mapped
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def write_pth(
    path: Path, tensors: Mapping[str, np.ndarray], *, wrapper: str | None = "model"
) -> None:
    """Writes `{wrapper: tensors}`, or the tensors alone, in PyTorch's zip layout, whole or not.

    Raises UserError where the file cannot be written.
    """
    root = path.stem.encode("utf-8", "replace").decode()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, f"{root}/data.pkl", pickle_of(tensors, wrapper=wrapper))
        _add(archive, f"{root}/byteorder", b"little")
        for index, tensor in enumerate(tensors.values()):
            _add(archive, f"{root}/data/{index}", np.ascontiguousarray(tensor).tobytes())
        _add(archive, f"{root}/version", b"3\n")


def pickle_of(tensors: Mapping[str, Any], *, wrapper: str | None) -> bytes:
    """Returns the pickle of a state dict whose storages are 0, 1, 2, ... in its order."""
    body = b""
    for index, (name, tensor) in enumerate(tensors.items()):
        strides = np.cumprod([1, *tensor.shape[:0:-1]], dtype=int)[::-1].tolist()
        body += _plain(name) + tensor_pickle(
            _NAMES[tensor.dtype],
            str(index),
            count=tensor.size,
            shape=tensor.shape,
            strides=tuple(strides) if tensor.shape else (),
        )
    body = _ORDERED_DICT + pickle.MARK + body + pickle.SETITEMS
    if wrapper is not None:
        body = pickle.EMPTY_DICT + _plain(wrapper) + body + pickle.SETITEM
    return b"\x80\x02" + body + pickle.STOP


def tensor_pickle(
    kind: str,
    storage: str,
    *,
    count: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
) -> bytes:
    """Returns the part of a pickle that stands for a tensor: a view of a storage's elements."""
    return b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK,
            pickle.MARK + _plain("storage") + f"ctorch\n{kind}Storage\n".encode(),
            _plain(storage) + _plain("cpu") + _plain(count) + pickle.TUPLE + pickle.BINPERSID,
            _plain(offset) + _plain(shape) + _plain(strides) + pickle.NEWFALSE,
            _ORDERED_DICT + pickle.TUPLE + pickle.REDUCE,
        ]
    )


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]  # without PROTO and STOP


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name)  # of 1980: the same tensors give the same bytes
    padding = -(archive.start_dir + 30 + len(name.encode()) + 4) % ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    archive.writestr(info, data)

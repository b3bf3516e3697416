"""Weights files of any format as state dicts of unread tensors; the format is seen, not named."""

from __future__ import annotations

import dataclasses
import glob
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.pth import read_pth, zip_member_reader
from vitswin_jax.weights.formats.tensors import (
    BFLOAT16,
    FLOAT8,
    Tensor,
    damaged,
    read_bytes,
    stored,
)

WRAPPERS = ("model", "state_dict", "model_state", "module", "net", "teacher", "model_ema")
"""Under which key training scripts save the state dict; the first that has tensors is taken."""

FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What stands for a folder of weights: our own runs' file and the hub's, in this order."""

_SAFETENSORS = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16,
    **FLOAT8,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Contents:
    """What a weights file holds."""

    format: str
    """ "npz", "safetensors" or "pth"."""
    tensors: Mapping[str, Tensor]
    left_out: tuple[str, ...] = ()
    """Tensors beside the state dict: optimizer state, other copies."""
    wrapper: str | None = None
    """The key the state dict stood under."""
    header: Mapping[str, str] = field(default_factory=dict)
    """What a safetensors file says of itself."""


def read_tensors(path: Path) -> Contents:
    """Returns the state dict of a weights file: npz, safetensors, PyTorch, or an index of shards.

    Raises UserError for a file that is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    if path.suffixes[-2:] == [".pth", ".master"]:
        return _read_ranks(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[:1] == b"{":
        return _read_index(path)
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04" and _is_npz(path):
        return Contents("npz", _read_npz(path))
    return _state_dict(path, read_pth(path))


def _read_safetensors(path: Path) -> Contents:
    # The library checks the header; the data is read past it, for its map of the whole file would
    # stay in memory beside the copies that are made of it.
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
    except (OSError, SafetensorError) as error:
        raise damaged(path, "a safetensors file", error) from error
    own = header.pop("__metadata__", {})
    if unknown := sorted({entry["dtype"] for entry in header.values()} - _SAFETENSORS.keys()):
        raise UserError(f"{path}: has tensors of unknown type {', '.join(unknown)}.")
    tensors = {}
    for name, entry in header.items():
        start = 8 + size + entry["data_offsets"][0]
        read_at = _reader_at(path, start)
        tensors[name] = stored(read_at, tuple(entry["shape"]), _SAFETENSORS[entry["dtype"]])
    return Contents("safetensors", tensors, header=own)


def _reader_at(path: Path, start: int) -> Callable[[int, int], np.ndarray]:
    return lambda offset, size: read_bytes(path, start + offset, size)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError):  # the latter of a damaged version number
        return path.suffix == ".npz"


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors, objects = {}, []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                with archive.open(info) as member:
                    header = _NPY_HEADERS[np.lib.format.read_magic(member)](member)
                    start = member.tell()
                name, (shape, fortran, dtype) = info.filename.removesuffix(".npy"), header
                if dtype.hasobject:
                    objects.append(name)
                    continue
                read = zip_member_reader(path, file, info)
                tensors[name] = _npz_tensor(read, start, shape, dtype, fortran)
                if info.file_size - start != tensors[name].size * dtype.itemsize:
                    raise ValueError(f"{name} has not the size that it says")
    except Exception as error:  # a damaged archive may raise anything
        raise damaged(path, "an npz file", error) from error
    if objects:
        raise UserError(
            f"{path}: {', '.join(sorted(objects))} are pickled Python objects, which are never "
            "executed; save plain arrays."
        )
    return tensors


def _npz_tensor(
    read_member: Callable[[int, int], np.ndarray],
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    fortran: bool,
) -> Tensor:
    kind = BFLOAT16 if dtype == np.dtype("V2") else dtype  # numpy has no bfloat16 to save

    def read_at(offset: int, size: int) -> np.ndarray:
        return read_member(start + offset, size)

    if not fortran:
        return stored(read_at, shape, kind)
    return stored(read_at, shape[::-1], kind).map(np.transpose, shape)


def _read_index(path: Path) -> Contents:
    try:
        shards = json.loads(path.read_text())["weight_map"]
        files = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no index of weights files: no 'weight_map' in it.") from error
    parts = [read_tensors(path.with_name(Path(file).name)) for file in files]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if missing := sorted(shards.keys() - tensors.keys()):
        raise UserError(f"{path}: its files lack {', '.join(missing)}.")
    return Contents(parts[0].format, tensors, sum((part.left_out for part in parts), ()))


def _read_ranks(master: Path) -> Contents:
    """Returns a mixture of experts whose devices wrote a file each, beside the one they share."""
    ranks = {
        int(path.suffix.removeprefix(".rank")): path
        for path in master.parent.glob(f"{glob.escape(master.stem)}.rank*")
        if path.suffix.removeprefix(".rank").isdecimal()
    }
    absent = sorted(set(range(max(ranks, default=0) + 1)) - ranks.keys())
    if absent:
        names = ", ".join(f"{master.stem}.rank{rank}" for rank in absent)
        raise UserError(f"{master}: beside it {names} is missing.")
    contents = _state_dict(master, read_pth(master))
    parts = [_state_dict(ranks[i], read_pth(ranks[i])).tensors for i in sorted(ranks)]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise UserError(f"{master}: the files of its {len(parts)} ranks have different tensors.")
    experts = {name: Tensor.joined([part[name] for part in parts]) for name in parts[0]}
    return dataclasses.replace(contents, tensors={**experts, **contents.tensors})


def _state_dict(path: Path, tree: Any) -> Contents:
    tensors = dict(_leaves(tree, ()))
    roots = {keys[0] for keys in tensors if len(keys) > 1 and isinstance(keys[0], str)}
    wrapper = next((name for name in WRAPPERS if name in roots), None)
    if wrapper is not None:
        inner = _state_dict(path, tree[wrapper])
        others = tuple(".".join(map(str, keys)) for keys in tensors if keys[0] != wrapper)
        return Contents("pth", inner.tensors, inner.left_out + others, wrapper)
    state = {keys[0]: tensor for keys, tensor in tensors.items() if len(keys) == 1}
    if not state:
        found = ", ".join(sorted(roots)) or type(tree).__name__
        raise UserError(f"{path}: has no state dict under {', '.join(WRAPPERS)}; it has {found}.")
    others = tuple(".".join(map(str, keys)) for keys in tensors if len(keys) > 1)
    return Contents("pth", {str(name): tensor for name, tensor in state.items()}, others)


def _leaves(tree: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(tree, Tensor):
        yield keys, tree
    elif isinstance(tree, Mapping) and len(keys) < 32:
        for key, value in tree.items():
            yield from _leaves(value, (*keys, key))
    elif isinstance(tree, list | tuple) and keys and len(keys) < 32:
        for index, value in enumerate(tree):
            yield from _leaves(value, (*keys, index))

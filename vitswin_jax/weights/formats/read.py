"""Weights files of any format as flat, unread tensors; the format is seen, not named."""

from __future__ import annotations

import dataclasses
import glob
import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vitswin_jax.core.json import read_json
from vitswin_jax.core.types import UserError, listed
from vitswin_jax.weights.formats.foreign import HEAD, refuse_foreign
from vitswin_jax.weights.formats.native import read_header
from vitswin_jax.weights.formats.orbax import is_checkpoint, read_checkpoint
from vitswin_jax.weights.formats.pth import read_pth
from vitswin_jax.weights.formats.tensors import (
    BFLOAT16,
    FLOAT8,
    DamageError,
    Held,
    Read,
    Tensor,
    check_tensors,
    damaged,
    part_reader,
    stored,
)
from vitswin_jax.weights.formats.zipped import member_reader, members_of

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
_INDEX = {
    "type": "object",
    "required": ["weight_map"],
    "properties": {
        "weight_map": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"type": "string", "maxLength": 255},
        }
    },
}
"""The schema of an index of shards."""

HEADER = 16 << 20
"""Bytes of the longest safetensors header that is read; one of 10,000 tensors has 1 MB."""

_NPY_HEADER = 1 << 16
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Contents:
    """The contents of a weights file."""

    format: str
    """ "npz", "safetensors", "pth" or "checkpoint"."""
    tensors: Mapping[str, Tensor]
    """All of them; the keys of nested dicts are joined by dots."""
    containers: Mapping[str, str] = field(default_factory=dict)
    """The keys above a tensor's own, `state_dict.`; a tensor of a flat file has no entry."""
    metadata: Mapping[str, Any] | None = None
    """The metadata of a file of our own."""
    architecture: str | None = None
    """What a training script says that it trained, under `arch`, as timm's does."""


def read_tensors(path: Path) -> Contents:
    """Returns the tensors of a weights file: npz, safetensors, PyTorch, or an index of shards.

    A run's checkpoint, a folder, is one too. Raises UserError for a file that is missing, damaged
    or of another kind.
    """
    if is_checkpoint(path):
        tensors, metadata = read_checkpoint(path)
        return Contents("checkpoint", tensors, metadata=metadata)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    if _is_safetensors(path, head):
        return _read_safetensors(path)
    refuse_foreign(path, head)
    if path.suffixes[-2:] == [".pth", ".master"]:
        return _read_ranks(path)
    if head.lstrip()[:1] == b"{":
        return _read_index(path)
    if path.suffix == ".safetensors" and head[:1] not in (b"P", b"\x80"):  # of zips and pickles
        raise damaged(path, "a safetensors file")
    if head[:4] == b"PK\x03\x04" and _is_npz(path):
        return Contents("npz", _read_npz(path))
    return _read_tree(path, read_pth(path))


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Returns whether a file begins with the length of a header, of JSON, and has so many bytes."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> Contents:
    # The library checks the header; the data is read past it, for its map of the whole file would
    # stay in memory beside the copies that are made of it.
    held = Held(path)
    length = int.from_bytes(held.read(0, 8).tobytes(), "little")
    if length > HEADER:
        raise UserError(f"{path}: has a header of {length:,} bytes; at most {HEADER:,} are read.")
    tensors, start = {}, 8 + length
    try:
        with safe_open(held.again, framework="numpy") as file:
            own = read_header(path, file.metadata() or {})
            checksums = own.checksums if own else {}
            for name in file.offset_keys():  # as they lie, without gaps
                entry = file.get_slice(name)
                shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
                if dtype not in _SAFETENSORS:
                    raise DamageError(f"it has tensors of the type {dtype}, which is not read")
                size = math.prod(shape) * _SAFETENSORS[dtype].itemsize
                read_at = part_reader(held, start, size, name=name, checksum=checksums.get(name))
                tensors[name] = stored(read_at, shape, _SAFETENSORS[dtype])
                start += size
        check_tensors(path, tensors.items())
    except (OSError, SafetensorError, DamageError) as error:
        raise damaged(path, "a safetensors file", error) from error
    return Contents("safetensors", tensors, metadata=own.metadata if own else None)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError):  # the latter of a damaged version number
        return path.suffix == ".npz"


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors, objects = {}, []
    try:
        for member, info in members_of(path).items():
            read, name = member_reader(path, info), member.removesuffix(".npy")
            (shape, fortran, dtype), start = _npy_header(path, info)
            if dtype.hasobject:
                objects.append(name[:40])
                continue
            tensors[name] = _npz_tensor(read, start, shape, dtype, fortran)
            if info.file_size - start != tensors[name].size * dtype.itemsize:
                raise DamageError(f"{name[:80]} has not the size that it says")
        check_tensors(path, tensors.items())
    except UserError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise damaged(path, "an npz file", error) from error
    if objects:
        raise UserError(
            f"{path}: {', '.join(sorted(objects)[:5])} are pickled Python objects, which are never "
            "executed; save plain arrays."
        )
    return tensors


def _npy_header(path: Path, info: zipfile.ZipInfo) -> tuple[Any, int]:
    """Returns (shape, whether in Fortran's order, dtype) of an array, and where its data begins."""
    with zipfile.ZipFile(path) as archive, archive.open(info) as member:
        file = io.BytesIO(member.read(_NPY_HEADER))  # a header may claim gigabytes
    header = _NPY_HEADERS[np.lib.format.read_magic(file)](file)
    return header, file.tell()


def _npz_tensor(
    read_member: Read, start: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool
) -> Tensor:
    kind = BFLOAT16 if dtype == np.dtype("V2") else dtype  # numpy has no bfloat16 to save
    given = shape[::-1] if fortran else shape
    tensor = stored(lambda offset, size: read_member(start + offset, size), given, kind)
    return tensor.map(np.transpose, shape) if fortran else tensor


def _read_index(path: Path) -> Contents:
    shards = shards_of(path)
    parts = [read_tensors(path.with_name(name)) for name in sorted(set(shards.values()))]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if missing := sorted(shards.keys() - tensors.keys()):
        raise UserError(f"{path}: its files lack {listed(missing)}.")
    containers = {name: keys for part in parts for name, keys in part.containers.items()}
    return Contents(parts[0].format, tensors, containers)


def shards_of(path: Path) -> dict[str, str]:
    """Returns the names of an index's tensors with those of their files, all beside the index.

    Raises UserError for a file that is no index.
    """
    content = read_json(path, _INDEX)
    shards = {name: Path(file).name for name, file in content["weight_map"].items()}
    for file in shards.values():
        if file in ("", "..") or file.endswith(".json"):
            raise UserError(f"{path}: weight_map names {file[:40]!r}, which is no weights file.")
    return shards


def _read_ranks(master: Path) -> Contents:
    """Returns a mixture of experts whose devices wrote a file each, beside the one they share."""
    ranks = {
        int(path.suffix.removeprefix(".rank")): path
        for path in master.parent.glob(f"{glob.escape(master.stem)}.rank*")
        if path.suffix.removeprefix(".rank").isdecimal()
    }
    # The first that is missing is among as many numbers as there are files.
    absent = next(rank for rank in range(len(ranks) + 1) if rank not in ranks)
    if absent <= max(ranks, default=0):
        raise UserError(f"{master}: beside it {master.stem}.rank{absent} is missing.")
    contents = _read_tree(master, read_pth(master))
    parts = [_read_tree(ranks[i], read_pth(ranks[i])) for i in sorted(ranks)]
    if any(part.tensors.keys() != parts[0].tensors.keys() for part in parts):
        raise UserError(f"{master}: the files of its {len(parts)} ranks have different tensors.")
    experts = {
        name: Tensor.joined([part.tensors[name] for part in parts])
        for name, tensor in parts[0].tensors.items()
        if tensor.shape  # counts of the optimizer have none
    }
    return dataclasses.replace(
        contents,
        tensors={**experts, **contents.tensors},
        containers={**parts[0].containers, **contents.containers},
    )


def _read_tree(path: Path, tree: Any) -> Contents:
    """Returns the tensors of nested containers; raises UserError where there are none."""
    tensors: dict[str, Tensor] = {}
    containers = {}
    for keys, tensor in _leaves(tree, ()):
        *above, own = map(str, keys)
        container = "".join(f"{key}." for key in above)
        name = container + own
        if name in tensors:
            raise UserError(f"{path}: has two tensors that are called {name[:80]}.")
        tensors[name], containers[name] = tensor, container
    if not tensors:
        raise UserError(f"{path}: has no state dict: no tensor in its {type(tree).__name__}.")
    arch = tree.get("arch") if isinstance(tree, Mapping) else None
    architecture = arch if isinstance(arch, str) else None
    return Contents("pth", tensors, containers, architecture=architecture)


def _leaves(tree: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(tree, Tensor) and keys:
        yield keys, tree
    elif isinstance(tree, Mapping) and len(keys) < 32:
        for key, value in tree.items():
            yield from _leaves(value, (*keys, key))
    elif isinstance(tree, list | tuple) and keys and len(keys) < 32:
        for index, value in enumerate(tree):
            yield from _leaves(value, (*keys, index))

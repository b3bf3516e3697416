"""The file of a host's set: its parts of each array, and in the header what is sealed with them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.json import parse_json
from vitswin_jax.core.seal import unsealed
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.stored import leaves_of, trees_of
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import DamagedError

_META = "vitswin_jax"  # the key in the header
_SEALED = {"type": "object", "required": ["step", "data", "arrays", "owner"]}


def parts_of(state: TrainState) -> dict[str, np.ndarray]:
    """Returns copies of this host's parts of each array, each part once, by `_name`."""
    leaves = leaves_of(trees_of(state))
    shards = {
        _name(path, leaf.shape, shard.index): shard.data
        for path, leaf in leaves.items()
        for shard in leaf.addressable_shards
    }
    for shard in shards.values():
        shard.copy_to_host_async()
    # Copies, for the next step takes the memory of the arrays; on CPU a host's view is that memory.
    return {name: np.array(shard, order="C") for name, shard in shards.items()}


def _name(path: str, shape: Sequence[int], index: Sequence[slice]) -> str:
    """Returns the name of a part of an array, such as "params/head/kernel[0:16,0:10]"."""
    ranges = (each.indices(size)[:2] for each, size in zip(index, shape, strict=True))
    return f"{path}[{','.join(f'{begin}:{end}' for begin, end in ranges)}]"


def names_of(layout: Any) -> set[str]:
    """Returns the names of this host's parts of trees of arrays."""
    return {name for path, leaf in leaves_of(layout).items() for name in _names(path, leaf)}


def bytes_of(layout: Any) -> int:
    """Returns the size of this host's parts of trees of arrays, in bytes."""
    return sum(
        len(_names(path, leaf))
        * math.prod(leaf.sharding.shard_shape(leaf.shape))
        * leaf.dtype.itemsize
        for path, leaf in leaves_of(layout).items()
    )


def _names(path: str, leaf: Any) -> set[str]:
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return {_name(path, leaf.shape, index) for index in indices if index is not None}


def write_set(path: Path, parts: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes the file of a set, whole or not at all; raises UserError where it cannot."""
    with replacing(path) as temporary:
        try:
            text = json.dumps(meta)
            safetensors.numpy.save_file(dict(parts), temporary, metadata={_META: text})
        except SafetensorError as error:  # its name for the file system's errors
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(os.strerror(int(number[1])) if number else str(error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DamagedError("is damaged") from error


def read_set_meta(path: Path) -> dict[str, Any]:
    """Returns the facts that are sealed with a set; raises DamagedError."""
    with _opened(path) as file:
        text = (file.metadata() or {}).get(_META, "")
    try:
        meta = unsealed(parse_json(text, _SEALED, origin=str(path)))
    except UserError as error:
        raise DamagedError("is damaged") from error
    if meta is None or f"{meta['step']}.safetensors" != path.name:
        raise DamagedError("is damaged")
    return meta


def read_set_names(path: Path) -> set[str]:
    """Returns the names of the parts that a set has; raises DamagedError."""
    with _opened(path) as file:
        return set(file.keys())


def read_parts(path: Path, layout: Any) -> Any:
    """Returns trees of arrays, of which each device is given its part; raises DamagedError."""
    with _opened(path) as file:
        arrays = [_read_array(file, name, leaf) for name, leaf in leaves_of(layout).items()]
    return jax.tree.unflatten(jax.tree.structure(layout), arrays)


def _read_array(file: Any, path: str, leaf: Any) -> jax.Array:
    shape, kind = leaf.shape, (leaf.dtype, leaf.sharding.shard_shape(leaf.shape))
    names = _names(path, leaf)
    if not names <= set(file.keys()):
        raise DamagedError("it does not have this host's parts")
    parts = {name: file.get_tensor(name) for name in names}
    if any((part.dtype, part.shape) != kind for part in parts.values()):
        raise DamagedError("it is damaged")
    return jax.make_array_from_callback(
        shape, leaf.sharding, lambda index: parts[_name(path, shape, index or ())]
    )

"""Checkpoints of runs, as Orbax writes them: the sealed facts of one, and its weights.

A step's checkpoint is a folder: `params` and `ema` (arrays: zarr in an OCDBT database), `metrics`,
and `meta`, which has the shape, the dtype and the checksum of every array and, under `weights`, all
that a weights file states. So a checkpoint is a weights file too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from vitswin_jax.core.json import read_json
from vitswin_jax.core.seal import checksum_of, unsealed
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.adapters import merge_adapters
from vitswin_jax.nn.params import PROJECTIONS
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.weights.formats.tensors import Tensor

ODD = 0x9E3779B1
WEIGHTS = "weights"
"""The key, in what is sealed with a checkpoint, of what makes weights of it; older versions wrote
none. Its `metadata` is a weights file's; `average` says that the average is meant, and `adapters`
what adapters are times, None without them."""
_META, _ABOUT = "meta/metadata", "_CHECKPOINT_METADATA"
_ABOUT_SCHEMA = {
    "type": "object",
    "properties": {
        "item_handlers": {"type": ["object", "string", "null"]},
        "metrics": {"type": ["object", "null"]},
        "performance_metrics": {
            "type": ["object", "null"],
            "additionalProperties": {"type": ["number", "integer", "null"]},
        },
        "init_timestamp_nsecs": {"type": ["integer", "null"]},
        "commit_timestamp_nsecs": {"type": ["integer", "null"]},
        "custom_metadata": {"type": ["object", "null"]},
    },
}
"""What Orbax writes about a checkpoint, and reads when a run saves its next one."""
_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


class DamagedError(Exception):
    """A checkpoint that is not as it was written; the message says in what."""


@jax.jit
def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the checksum of each array: one program, whose sums over devices have one order."""
    return {path: checksum(array) for path, array in arrays.items()}


def checksum(array: jax.Array) -> jax.Array:
    """Returns the sum of an array's bit patterns, each times an odd number of its place: uint32 ().

    Integers add up modulo 2**32 exactly in any order, so it is the same on every mesh; and no
    single flipped bit leaves it as it was.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        place = place * jnp.uint32(ODD) + lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def steps_in(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint in a folder, whole or not, the newest first."""
    try:
        names = os.listdir(folder)  # noqa: PTH208, names only
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from error
    return sorted((int(name) for name in names if _STEP.fullmatch(name)), reverse=True)


def newest_meta(folder: Path) -> dict[str, Any] | None:
    """Returns the sealed facts of the newest readable checkpoint, or None without one."""
    for step in steps_in(folder):
        with contextlib.suppress(DamagedError):
            return read_meta(folder / str(step))
    return None


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns the sealed facts of the checkpoint in `folder`; raises DamagedError.

    Orbax's own files about it, which its manager reads at its start, must be as they were too.
    """
    meta = _read_json(folder, _META)
    _read_json(folder, _ABOUT)
    try:
        read_json(folder / _ABOUT, _ABOUT_SCHEMA)
    except UserError as error:
        raise DamagedError(f"{_ABOUT} is not what was written") from error
    content = unsealed(meta)
    if content is None:
        raise DamagedError("meta/metadata is not what was written")
    if str(content["step"]) != folder.name:
        raise DamagedError(f"meta/metadata is of step {content['step']}")
    if checksum_of(_read_json(folder, "metrics/metrics")) != checksum_of(content["metrics"]):
        raise DamagedError("metrics/metrics is not what was written")
    return content


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is missing") from error
    except OSError as error:
        raise DamagedError(f"{name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{name} is not what was written")
    return value


def sealed_in(folder: Path) -> Path:
    """Returns the file of a checkpoint that states its arrays, with their checksums."""
    return folder / _META


def is_checkpoint(path: Path) -> bool:
    """Returns whether a folder is a checkpoint of a run."""
    return sealed_in(path).is_file()


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the weights of a checkpoint, flat and unread, and the metadata of a weights file.

    Raises UserError for one that is damaged, or of a version that did not say what its weights are.
    """
    try:
        meta = read_meta(folder)
    except DamagedError as error:
        raise UserError(f"{folder}: is damaged: {error}; take another step.") from error
    if WEIGHTS not in meta:
        raise UserError(
            f"{folder}: an older version saved it without the facts about its weights; resume "
            "the run for a step, or use its model.safetensors."
        )
    how = meta[WEIGHTS]
    items = ("params", "ema") if how["average"] else ("params",)
    paths: dict[str, tuple[str, Any]] = {}
    for item in items:  # an average is of what is trained, and takes its place
        own = [path for path in meta["arrays"] if path.startswith(f"{item}/")]
        paths |= {path.removeprefix(f"{item}/"): (path, meta["arrays"][path]) for path in own}
    paths = {path: x for path, x in paths.items() if not path.startswith(f"{PROJECTIONS}/")}

    def as_model(flat: Mapping[str, Any]) -> Params:
        params: Params = unflatten_dict(dict(flat), sep="/")
        if how["adapters"] is not None:
            params = merge_adapters(params, how["adapters"])
        return flatten_dict(unstack_blocks(params), sep="/")

    @functools.cache
    def whole() -> Mapping[str, Any]:
        return as_model(_read_arrays(folder, paths))

    def read(name: str) -> np.ndarray:
        with lock:  # threads read, and one of them reads for all
            return np.array(whole()[name])

    lock = threading.Lock()
    layout = {
        name: jax.ShapeDtypeStruct(tuple(shape), dtype)
        for name, (_, (shape, dtype, _)) in paths.items()
    }
    tensors = {
        name: Tensor(leaf.shape, np.dtype(leaf.dtype), functools.partial(read, name))
        for name, leaf in jax.eval_shape(as_model, layout).items()
    }
    metadata = dict(how["metadata"])
    metadata["provenance"] = {**metadata["provenance"], "step": meta["step"]}
    return tensors, metadata | {"metrics": meta["metrics"]}


def _read_arrays(folder: Path, paths: Mapping[str, tuple[str, Any]]) -> dict[str, np.ndarray]:
    """Returns arrays of a checkpoint by name; raises UserError for what is not what was written."""
    import tensorstore as ts

    arrays = {}
    for name, (path, _) in paths.items():
        item, _, inside = path.partition("/")
        base = {"driver": "file", "path": f"{folder.resolve() / item}/"}
        store = {"driver": "ocdbt", "base": base, "path": inside.replace("/", ".") + "/"}
        try:
            opened = ts.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
            arrays[name] = opened.read().result()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: is damaged: {path} cannot be read; take another step."
            ) from error
    sums = jax.device_get(checksums(arrays))
    for name, (path, (shape, _, total)) in paths.items():
        if list(arrays[name].shape) != shape or int(sums[name]) != total:
            raise UserError(
                f"{folder}: is damaged: {path} is not what was written; take another step."
            )
    return arrays

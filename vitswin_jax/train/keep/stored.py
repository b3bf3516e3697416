"""One checkpoint on disk: its description of its arrays, and a complete reading of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.join import gather
from vitswin_jax.train.optim.groups import path_of
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import DamagedError, checksums

CACHE_BYTES = 2**30  # of chunks that devices of one host have parts of
FINGERPRINT = "fingerprint"
"""Of the data, in what is sealed with a checkpoint; older versions wrote none."""


def trees_of(state: TrainState) -> dict[str, Any]:
    """Returns the trees of arrays of a state by item; one that is None has no item."""
    names = ("params", "opt_state", "ema", "kept")
    trees = {name: getattr(state, name) for name in names}
    return {name: tree for name, tree in trees.items() if tree is not None}


def describe(state: TrainState) -> dict[str, list[Any]]:
    """Returns [shape, dtype, checksum] of every array of a state, by its path.

    They are what tells another model's checkpoint from a damaged one, and a damaged array from a
    whole one: Orbax compresses without a checksum, and a flipped bit of its files loads silently.
    """
    arrays = leaves_of(trees_of(state))
    sums = jax.device_get(checksums(arrays))
    return {path: [*_kind(leaf), int(sums[path])] for path, leaf in arrays.items()}


def check_same_arrays(folder: Path, meta: Mapping[str, Any], layout: TrainState) -> None:
    """Raises UserError for a checkpoint of another model or optimizer, with all that differs."""
    theirs = {path: kind for path, (*kind, _) in meta["arrays"].items()}
    ours = {path: _kind(leaf) for path, leaf in leaves_of(trees_of(layout)).items()}
    wrong = [f"{path} is not in it" for path in sorted(ours.keys() - theirs.keys())]
    wrong += [f"nothing takes {path}" for path in sorted(theirs.keys() - ours.keys())]
    wrong += [
        f"{path} is {_say(theirs[path])} and must be {_say(ours[path])}"
        for path in sorted(ours.keys() & theirs.keys())
        if ours[path] != theirs[path]
    ]
    if wrong:
        raise UserError(
            f"{folder}: is a checkpoint of another model or optimizer: {'; '.join(wrong)}. Choose "
            "another --workdir, or resume with the config that wrote it."
        )


def read_state(folder: Path, meta: Mapping[str, Any], layout: TrainState) -> TrainState:
    """Returns the state in `folder`, each device given its part of it, laid out by `layout`.

    Raises DamagedError on every host where one of them cannot read its part, or an array is not
    what it was. All hosts call it; none waits for another while it reads.
    """
    with agreed():
        restored = {name: _read_tree(folder / name, t) for name, t in trees_of(layout).items()}
    return checked(restored, meta, layout)


def checked(restored: Mapping[str, Any], meta: Mapping[str, Any], layout: TrainState) -> TrainState:
    """Returns a state of trees that were read, by item; raises DamagedError on every host alike.

    It does where an array is not what it was.
    """
    with agreed():  # each host sums its own copy of an array that all have
        sums = jax.device_get(checksums(leaves_of(restored)))
        changed = [path for path, total in sums.items() if int(total) != meta["arrays"][path][2]]
        if changed:
            others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise DamagedError(f"{changed[0]}{others} is not what was written")
    step = jax.device_put(jnp.int32(meta["step"]), layout.step.sharding)
    return layout.replace(step=step, **restored)


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Raises DamagedError on all hosts if the block raises it on one; all hosts run the block.

    If it is not the same on all, the message names the first host that has it.
    """
    why = ""
    try:
        yield
    except DamagedError as error:
        why = str(error)
    told = gather(why)
    if len(set(told)) > 1:
        why = next(f"host {host}: {text}" for host, text in enumerate(told) if text)
    if why:
        raise DamagedError(why)


def _read_tree(folder: Path, layout: Any) -> Any:
    """Returns the tree of arrays that Orbax wrote to `folder`: zarr in an OCDBT database.

    TensorStore reads it with Orbax's settings. Orbax's own reader is not used: when one read fails,
    it abandons the others, which print a traceback each, and keeps the other hosts at a barrier.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    leaves, tree = jax.tree_util.tree_flatten_with_path(layout)
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    opening = []
    for path, _ in leaves:
        kvstore = {**database, "path": path_of(path).replace("/", ".") + "/"}
        spec = {"driver": "zarr", "kvstore": kvstore}
        opening.append(ts.open(spec, open=True, read=True, context=context))
    try:
        reading = [
            _begin_reads(store.result(), leaf)
            for store, (_, leaf) in zip(opening, leaves, strict=True)
        ]
        arrays = [
            jax.make_array_from_callback(leaf.shape, leaf.sharding, read)
            for read, (_, leaf) in zip(reading, leaves, strict=True)
        ]
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder.name} cannot be read: {_in_short(error)}") from error
    return jax.tree.unflatten(tree, arrays)


def _begin_reads(store: ts.TensorStore, leaf: Any) -> Callable[[Any], np.ndarray]:
    """Begins to read this host's parts of an array, each once; returns what waits for a part."""
    parts = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    reads = {name: store[part].read() for name, part in {str(part): part for part in parts}.items()}
    return lambda index: reads[str(index)].result()


def _in_short(error: Exception) -> str:
    """Returns TensorStore's message without its specification, which is longer than a screen."""
    text = re.sub(r' in OCDBT database at local file "[^"]*"', "", str(error))
    return text.partition(" [tensorstore_spec=")[0].partition(" [source locations=")[0]


def leaves_of(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in the tree's order."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _kind(leaf: Any) -> list[Any]:
    return [list(leaf.shape), str(leaf.dtype)]


def _say(kind: list[Any]) -> str:
    shape, dtype = kind
    return f"{dtype} {tuple(shape)}"

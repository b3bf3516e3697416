"""The mesh, and where each array lies on it: data, read by the one jit of the trainer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vitswin_jax.types import UserError

PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # (pattern of the whole path, layout), the first that matches.
    (r".*", PartitionSpec()),  # a copy of every parameter on every device
)
BATCH_SPEC = PartitionSpec("data")


def create_mesh(*, data: int = -1, devices: list[jax.Device] | None = None) -> Mesh:
    """Creates a mesh with one axis, `data`, over all devices (-1) or the first `data` of them.

    Raises UserError where there are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
    size = len(devices) if data == -1 else data
    if not 1 <= size <= len(devices):
        raise UserError(
            f"mesh.data={data} must be -1 (all) or between 1 and the {len(devices)} devices."
        )
    return jax.make_mesh((size,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:size])


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where a global batch cannot be divided over the mesh's data axis."""
    if batch_size < 1 or batch_size % mesh.shape["data"]:
        size = mesh.shape["data"]
        near = max(size, round(batch_size / size) * size)
        raise UserError(
            f"{key}={batch_size} must be a multiple of the {size} devices, such as {near}."
        )


def _layout(path: tuple[Any, ...]) -> PartitionSpec:
    name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
    for pattern, spec in PARAM_RULES:
        if re.fullmatch(pattern, name):
            return spec
    raise ValueError(f"no rule of PARAM_RULES covers {name}.")


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of every leaf of a state, by `PARAM_RULES`; an uncovered path raises."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, _layout(path)), state
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every array of a batch: rows over the data axis."""
    return NamedSharding(mesh, BATCH_SPEC)


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this host's rows of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }

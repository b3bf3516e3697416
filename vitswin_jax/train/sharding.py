"""The mesh and the sharding of each array, as data that the jitted step of the trainer reads."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.module import InterceptorContext
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitswin_jax.core.types import UserError, counted
from vitswin_jax.nn.forms import PLATFORMS, traced_for
from vitswin_jax.nn.params import uncovered
from vitswin_jax.nn.placement import AXES, SLICE, check_divides, spec_of
from vitswin_jax.train.optim.groups import path_of
from vitswin_jax.train.slices import arrange, check_whole_hosts, count_slices

# (pattern of a whole path in a state, its mesh axes), the first that matches: for arrays other than
# parameters and their averages and moments, which have a parameter's shape. Scalars need no row.
STATE_RULES: tuple[tuple[str, P], ...] = (
    (r"opt_state/(.*/)?count", P()),  # one for each block of a stack, if a rule is applied to each
    (r"opt_state/.*/ns_coeffs", P()),  # Muon's polynomial
    (r"opt_state/.*/v(_row|_col)?/.*", P()),  # Adafactor's means over rows and columns
    (r"opt_state/own/.*", P()),  # of an optimizer that a user passes
    (r"kept/.*", P()),  # of the task
)
BATCH_AXES = (SLICE, "data", "fsdp")
"""The axes that divide a batch, of those that a mesh has."""
# Modules whose outputs lie as the batch does, and so do these outputs' gradients. Left to the
# compiler, a ViT's lie as its kernels do, by channels, and each layer gathers the whole batch.
BATCH_ACTIVATIONS = r"(.*/)?(patch_embed|block_\d+|blocks)"


def create_mesh(
    *,
    slices: int | None = None,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Creates a mesh of all devices with the axes data, fsdp and tensor; -1 is what others leave.

    Several slices are an axis before these, `slice`, over which only copies of the model lie;
    `slices` is their number, None: as many as the devices report. The last axis is of devices
    nearest to each other. A mesh of one device has the first. Raises UserError for slices that do
    not divide the devices, for sizes that do not multiply to the devices of a slice, or for a
    tensor axis across hosts.
    """
    devices = jax.devices() if devices is None else devices
    slices = count_slices(devices, slices)
    inside = len(devices) // slices
    count = len({device.process_index for device in devices})
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    given = math.prod(size for size in sizes.values() if size != -1)
    shape = [max(1, inside // max(1, given)) if x == -1 else x for x in sizes.values()]
    if (
        min(*shape, given) < 1
        or list(sizes.values()).count(-1) > 1
        or math.prod(shape) not in ((1, inside) if slices == 1 else (inside,))
    ):
        raise UserError(_must_be(sizes, inside, slices))
    devices = devices[: slices * math.prod(shape)]
    grid = arrange(devices, slices=slices, shape=shape)
    hosts = np.vectorize(lambda device: device.process_index)(grid)
    check_whole_hosts(hosts)
    axes: tuple[str, ...] = AXES if slices == 1 else (SLICE, *AXES)
    if slices == 1:
        grid, hosts = grid[0], hosts[0]
    check_hosts(hosts, count=count)
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def _must_be(sizes: Mapping[str, int], inside: int, slices: int) -> str:
    """Returns the line for sizes of axes that are not the devices of a slice."""
    names = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if slices == 1:
        return (
            f"{names} must multiply to the {counted(inside, 'device')}; one of them may be "
            "-1 (all remaining devices), or all may be 1 (only the first device)."
        )
    return (
        f"{names} must multiply to the {counted(inside, 'device')} of each of the {slices} slices; "
        "one of them may be -1 (all remaining devices)."
    )


def check_hosts(hosts: np.ndarray, *, count: int) -> None:
    """Raises UserError where devices that need the same rows of a batch are of several hosts.

    Or where one of the `count` hosts has no device. `hosts` is the host of each device of a mesh,
    int (..., tensor).
    """
    if len(np.unique(hosts)) < count:
        raise UserError(
            f"the mesh has {hosts.size} device(s), none of some hosts; with {count} hosts it "
            "must have all devices."
        )
    if (hosts != hosts[..., :1]).any():
        raise UserError(
            f"mesh.tensor={hosts.shape[-1]} would go across hosts, but each host reads its own "
            f"rows; it must stay within the {np.bincount(hosts.ravel()).max()} devices of a "
            "host, such as 1."
        )


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes of a mesh that divide a batch."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where a global batch cannot be divided over slices, data and fsdp."""
    axes = batch_axes(mesh)
    size = math.prod(mesh.shape[axis] for axis in axes)
    if batch_size < 1 or batch_size % size:
        near = max(size, round(batch_size / size) * size)
        product = " x ".join("slices" if axis == SLICE else f"mesh.{axis}" for axis in axes)
        raise UserError(
            f"{key}={batch_size} must be a multiple of {size}, which is {product}; "
            f"{near} is the nearest."
        )


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the sharding of every array of a state that has `params`.

    Parameters lie as `nn.params` has it, and so do their average and moments, whose paths end in
    theirs; all else lies by `STATE_RULES`. Raises ValueError that lists every path that no row
    covers, and UserError for a mesh that does not divide what it should.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    shapes = {path_of(path): np.shape(leaf) for path, leaf in leaves}
    params = {
        path.removeprefix("params/"): shape
        for path, shape in shapes.items()
        if path.startswith("params/")
    }
    found = {path: _spec(path, shape, params) for path, shape in shapes.items()}
    specs = {path: spec for path, spec in found.items() if spec is not None}
    if without := [path for path in found if path not in specs]:
        raise ValueError(f"no row of PARAMETERS or STATE_RULES covers {', '.join(without)}.")
    check_divides(mesh, {path: (shape, specs[f"params/{path}"]) for path, shape in params.items()})
    return jax.tree.unflatten(tree, [NamedSharding(mesh, spec) for spec in specs.values()])


def _spec(path: str, shape: tuple[int, ...], params: Mapping[str, tuple[int, ...]]) -> P | None:
    names = path.split("/")
    endings = ("/".join(names[i:]) for i in range(len(names)))
    param = next((ending for ending in endings if ending in params), None)
    if not shape:
        return P()
    if param is None or params[param] != shape:
        return next((spec for pattern, spec in STATE_RULES if re.fullmatch(pattern, path)), None)
    if uncovered([param]):
        return None
    return spec_of(param)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every array of a batch: rows over slices, data and fsdp."""
    return NamedSharding(mesh, P(batch_axes(mesh)))


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this host's rows of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def host_order(hosts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the place in a sharded batch of each row, in the order of hosts and their rows.

    `hosts` has the host of each row of the sharded batch. A mesh follows the links between devices,
    so a host's rows, which stay in order, need not be neighbours.
    """
    return np.argsort(np.asarray(hosts), kind="stable")


def rows_of_hosts(mesh: Mesh, batch_size: int) -> list[int]:
    """Returns the hosts of the rows of a batch on the mesh, in order."""
    devices = mesh.devices[..., 0].ravel()
    return [device.process_index for device in np.repeat(devices, batch_size // devices.size)]


def platform_of(mesh: Mesh) -> str | None:
    """Returns the platform of a mesh's devices, of those that programs are traced for."""
    platform = mesh.devices.flat[0].platform
    return platform if platform in PLATFORMS else None


def constrain_activations(mesh: Mesh) -> Callable[[Callable], Callable]:
    """Returns a decorator of a step: its models' `BATCH_ACTIVATIONS` lie as the batch does.

    Modules are met by their paths while they are traced, and so know nothing of the mesh. They are
    traced for the platform of its devices, which may be another than this process's default.
    """

    def constrain(call: Callable, args: tuple, kwargs: dict, context: InterceptorContext) -> Any:
        out = call(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or not re.fullmatch(BATCH_ACTIVATIONS, path):
            return out
        return jax.lax.with_sharding_constraint(out, batch_sharding(mesh))

    known = platform_of(mesh)

    def decorate(step: Callable) -> Callable:
        @functools.wraps(step)
        def traced(*args: Any, **kwargs: Any) -> Any:
            with traced_for(known, devices=mesh.size), nn.intercept_methods(constrain):
                return step(*args, **kwargs)

        return traced

    return decorate

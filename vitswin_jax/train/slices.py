"""Slices: groups of devices with fast links inside, joined by the network of a data centre.

TPUs of a slice are joined by ICI. GPUs of a slice are joined by NVLink, and are mostly a node's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from vitswin_jax.core.types import UserError, counted


def slice_of(device: jax.Device) -> int:
    """Returns the index of a device's slice; 0 where the platform knows none, as a CPU's does."""
    return getattr(device, "slice_index", None) or 0


def count_slices(devices: Sequence[jax.Device], slices: int | None) -> int:
    """Returns the number of slices of a mesh: `slices`, or as many as the devices report.

    Raises UserError for a number that does not divide the devices, for one that is not that of the
    TPUs' slices, and for slices of different sizes.
    """
    sizes = Counter(map(slice_of, devices))
    found = len(sizes)
    if slices is not None and slices < 1:
        raise UserError(
            f"mesh.slices={slices} must be 1 or more, or None: the slices that the devices report."
        )
    if slices not in (None, found) and found > 1 and devices[0].platform == "tpu":
        raise UserError(
            f"mesh.slices={slices}, and the TPUs are {found} slices; leave it None, or start "
            "the other slices too."
        )
    if slices in (None, found) and len(set(sizes.values())) > 1:
        each = ", ".join(f"slice {i} has {sizes[i]}" for i in sorted(sizes)[:8])
        raise UserError(
            f"every slice must have as many devices as the others: {each}"
            f"{', ...' if found > 8 else ''}."
        )
    wanted = found if slices is None else slices
    if len(devices) % wanted:
        fits = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0][:12]
        raise UserError(
            f"mesh.slices={wanted} does not divide the {counted(len(devices), 'device')}; it can "
            f"be {', '.join(fits)}."
        )
    return wanted


def arrange(devices: Sequence[jax.Device], *, slices: int, shape: Sequence[int]) -> np.ndarray:
    """Returns the devices as (slices, *shape), those of the last axis nearest to each other.

    Slices are those that the devices report, if these are as many as wanted. Else the devices are
    cut in their order: nodes of GPUs as one slice, or the devices of a CPU as several.
    """
    if slices > 1 and slices == len({slice_of(device) for device in devices}):
        return mesh_utils.create_hybrid_device_mesh(
            (1, *shape),
            (slices, *(1 for _ in shape)),
            devices,
            allow_split_physical_axes=True,
        )
    whole = (slices * shape[0], *shape[1:])
    grid = mesh_utils.create_device_mesh(whole, devices, allow_split_physical_axes=True)
    return grid.reshape(slices, *shape)


def check_whole_hosts(hosts: np.ndarray) -> None:
    """Raises UserError where a host is of several slices, unless it is the only host.

    `hosts` is the host of each device of a mesh, int (slices, ...).
    """
    count = len(np.unique(hosts))
    its_slices = Counter(host for part in hosts for host in np.unique(part).tolist())
    cut = [host for host in sorted(its_slices) if its_slices[host] > 1]
    if count > 1 and cut:
        fits = [str(n) for n in range(1, count + 1) if count % n == 0][:12]
        raise UserError(
            f"mesh.slices={len(hosts)} cuts host {cut[0]} in two, and a slice is of whole "
            f"hosts; with {count} hosts it can be {', '.join(fits)}."
        )

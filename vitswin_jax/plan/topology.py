"""Hardware by name, present or not: devices to compile a step for, and their memory."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from vitswin_jax.core.types import UserError, counted

GIB = 2**30


@dataclass(frozen=True)
class Rates:
    """A device's published rates, one way."""

    flops: float
    """bfloat16 products, a second."""
    links: float
    """Bytes a second over the links to the other devices of a slice (ICI), all links together."""
    network: float
    """Bytes a second over the network between slices (DCN), its part of its host's."""


@dataclass(frozen=True)
class Tpu:
    """A kind of TPU, as one JAX device of it is."""

    hbm: int
    """GiB, published: cloud.google.com/tpu/docs/v2, v3, v4, v5e, v5p, v6e, tpu7x. Of a chip, or of
    its half where that is a device of its own."""
    usable: float
    """GiB that are left to a program: what libtpu 0.0.42's compiler reports for one too large."""
    example: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `topologies.get_topology_desc`."""
    rates: Rates | None = None
    """Of the same pages, and DCN's of jax-ml.github.io/scaling-book/tpus; None: not looked up."""


TPUS = {
    "v2": Tpu(hbm=8, usable=7.48, example="v2:4x4"),
    "v3": Tpu(hbm=16, usable=15.48, example="v3:4x4"),
    # Both cores of a chip as one device, as JAX has them on a machine.
    "v4": Tpu(hbm=32, usable=30.75, example="v4:2x2x4", options={"chip_config_name": "megacore"}),
    "v5e": Tpu(hbm=16, usable=15.75, example="v5e:4x4", rates=Rates(197e12, 200e9, 3.125e9)),
    "v5p": Tpu(hbm=95, usable=95.74, example="v5p:2x2x4", rates=Rates(459e12, 600e9, 6.25e9)),
    "v6e": Tpu(hbm=32, usable=31.25, example="v6e:4x4", rates=Rates(918e12, 400e9, 12.5e9)),
    "tpu7x": Tpu(hbm=96, usable=94.75, example="tpu7x:2x2x4"),
}
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # no question to a metadata server: the machine is not meant
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any; without it and the next, libtpu complains
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so several processes may compile at once
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""What libtpu needs to compile where no TPU is, quietly; what the user has set goes before."""


@dataclass(frozen=True)
class Topology:
    """Devices to compile for, all of one kind."""

    name: str
    devices: Sequence[jax.Device]
    usable: int
    """Bytes of each device's memory that a program may take."""
    rates: Rates | None = None


def open_topology(name: str | None, *, slices: int = 1) -> Topology:
    """Returns the topology of a name: "v5e:16x16", a TPU slice; "cpu:8" or "gpu", devices here.

    None is all devices that JAX finds. TPUs need no TPU, but libtpu; there are as many `slices` of
    them, all alike. To be called before JAX has begun to use devices. Raises UserError for a name
    that is none, and for devices not here.
    """
    if name is None:
        return _here("this machine", jax.devices())
    kind, _, layout = name.partition(":")
    if kind in TPUS:
        return _tpus(name, TPUS[kind], layout, slices)
    if kind not in ("cpu", "gpu") or not re.fullmatch(r"([1-9]\d*)?", layout):
        raise UserError(
            f"topology {name}: is KIND:LAYOUT of a TPU, such as "
            f"{', '.join(tpu.example for tpu in TPUS.values())}, or cpu:N or gpu:N, the first N "
            "devices of this machine."
        )
    return _local(name, kind, int(layout or 0))


def _tpus(name: str, tpu: Tpu, layout: str, slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology {name}: libtpu compiles for TPUs and is not installed; pip install "
            "'vitswin_jax[tpu]'."
        )
    for key, value in LIBTPU.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")  # where the little that is computed, is
    jax.config.update("jax_enable_compilation_cache", False)  # no device is here to read it for
    from jax.experimental import topologies

    options = dict(tpu.options) | ({"num_slices": slices} if slices > 1 else {})
    if re.fullmatch(r"1(x1)*", layout):  # a part of a host, which libtpu needs to know
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
        raise UserError(f"topology {name}: {why}; a valid one is {tpu.example}.") from error
    return Topology(name, devices, math.floor(tpu.usable * GIB), tpu.rates)


def _local(name: str, kind: str, count: int) -> Topology:
    """Returns the first `count` devices of this machine of a kind, all for 0."""
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
        with contextlib.suppress(RuntimeError):  # they are in use already, as many as they are
            jax.config.update("jax_num_cpu_devices", count or -1)
    try:
        devices = jax.devices(kind)
    except RuntimeError:
        devices = []
    if len(devices) < max(count, 1):
        raise UserError(
            f"topology {name}: {counted(len(devices), 'device')} of that kind "
            f"{'is' if len(devices) == 1 else 'are'} here."
        )
    return _here(name, devices[:count] if count else devices)


def _here(name: str, devices: Sequence[jax.Device]) -> Topology:
    """Returns devices of this machine, of which CPUs share its memory."""
    if devices[0].platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Topology(name, devices, machine // len(devices))
    return Topology(name, devices, devices[0].memory_stats()["bytes_limit"])

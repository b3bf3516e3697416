"""Sharding of parameters on a mesh by the table of `nn.params`; checks that sizes divide."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Shapes, UserError, counted
from vitswin_jax.nn.params import facts
from vitswin_jax.nn.scan import is_stacked

AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh: copies of the model, devices that divide a copy's channels, and its heads."""
SLICE = "slice"
"""The axis before these where a mesh has several slices: copies of the model on each."""


def spec_of(path: str) -> P:
    """Returns the layout of a parameter; a stack of blocks is divided as its blocks are."""
    spec = facts(path).mesh
    return P(None, *spec) if is_stacked(path) else spec


def param_shardings(mesh: Mesh, shapes: Shapes) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter, by its path, in loop or scan layout.

    Raises UserError for a mesh of other axes than `AXES`, and for one that does not divide what it
    should.
    """
    if tuple(mesh.axis_names) not in (AXES, (SLICE, *AXES)):
        raise UserError(
            f"the mesh has the axes {', '.join(map(str, mesh.axis_names))}, and must have "
            f"{', '.join(AXES)}, as train.sharding.create_mesh makes one."
        )
    specs = {path: spec_of(path) for path in shapes}
    check_divides(mesh, {path: (shape, specs[path]) for path, shape in shapes.items()})
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def check_divides(mesh: Mesh, layouts: Mapping[str, tuple[tuple[int, ...], P]]) -> None:
    """Raises UserError that names what axes of the mesh do not divide, and sizes that would.

    `layouts` has the shape and the layout of each parameter.
    """
    faults = Faults()
    devices = mesh.size // mesh.shape.get(SLICE, 1)
    for axis, size in mesh.shape.items():
        divided = [
            (path, shape, i)
            for path, (shape, spec) in layouts.items()
            for i, its in enumerate(spec)
            if its == axis
        ]
        misfits = [(path, shape, i) for path, shape, i in divided if shape[i] % size]
        if misfits:
            path, shape, i = misfits[0]
            common = math.gcd(devices, *(shape[i] for _, shape, i in divided))
            others = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
            fits = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            faults.append(
                f"mesh.{axis}={size} does not divide axis {i} of {path} {shape}{others}; on "
                f"{counted(devices, 'device')} it can be {fits}"
            )
    faults.check()

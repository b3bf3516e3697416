"""Facts of a compiled step: bytes by kind, and its collectives."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.placement import SLICE
from vitswin_jax.plan.collectives import Traffic, between_slices, collectives

SMALL, SCALARS = 4 * 2**20, 2**16
"""Bytes of gradients that a slice may send whole from each device, and of a step's metrics."""
_TOO_LARGE = re.compile(r"(?:temporaries \(|Used )([\d.]+)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(tree: Any) -> int:
    """Returns the bytes of a device's parts of arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def measure(
    lowered: jax.stages.Lowered, given: dict[str, int], slices: Sequence[int]
) -> tuple[dict[str, int], dict[str, Traffic] | None, dict[str, Traffic] | None]:
    """Returns bytes by kind, what is given and what is not, and collectives in and between slices.

    `given` has the bytes of arguments, and `slices` is the slice of each device. Collectives are
    None where the compiler found no program that fits; it reports what it would need. Raises
    UserError where it fails otherwise.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needs = _TOO_LARGE.search(str(error))
        if needs is None:
            raise UserError(f"the step does not compile: {str(error).splitlines()[0]}") from error
        total = int(float(needs[1]) * _UNITS[needs[2]])  # with what is given, whatever it says
        return given | {"temporaries": max(0, total - sum(given.values()))}, None, None
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    assert sizes is not None and text is not None  # as XLA's compilers tell both
    besides = {
        "padding": max(0, sizes.argument_size_in_bytes - sum(given.values())),
        "temporaries": sizes.temp_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    between = between_slices(text, slices) if slices[-1] else {}
    return given | besides, collectives(text, slices=slices), between


def gradients_between(params: Params, mesh: Mesh) -> int:
    """Returns the bytes of gradients that a device sends to other slices, at most.

    A TPU's slice sums them first, so that each device sends its part of a large one. Other
    platforms sum over all devices at once.
    """
    sizes = [4 * leaf.size for leaf in jax.tree.leaves(params)]
    inside = mesh.size // mesh.shape.get(SLICE, 1)
    parts = inside if mesh.devices.flat[0].platform == "tpu" else 1
    whole = sum(size for size in sizes if size < SMALL)
    return math.ceil(1.05 * (sum(sizes) - whole) / parts) + whole + SCALARS

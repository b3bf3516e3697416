"""StableHLO: a program as `jax.export` stores it, for every platform and a batch of any size.

A newer JAX reads what an older one wrote, for six months at least (JAX's own promise for
`jax.export`). Beside the file is its description, as JSON.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import flatbuffers  # noqa: F401  (jax.export writes with it, and does not say so)
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vitswin_jax.core.atomic import replacing
from vitswin_jax.export.program import Difference, Program, Run, check_export

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_stablehlo(
    path: str | os.PathLike[str], program: Program, *, images: np.ndarray | None = None
) -> Difference:
    """Writes a program that `jax.export.deserialize` reads, after it has run and JAX agrees.

    The file is written whole or not at all; so is its description, `path` + ".json". Returns the
    difference of the two on `images`, or on photos. Raises UserError for an export that differs.
    """
    weights = {
        path: tuple(map(jnp.asarray, program.codes[path])) if path in program.codes else leaf
        for path, leaf in program.params.items()
    }
    exported = export.export(
        jax.jit(lambda images: program.apply(weights, images)), platforms=PLATFORMS
    )(program.image_spec())
    described = program.describe(
        platforms=PLATFORMS, calling_convention_version=exported.calling_convention_version
    )
    with replacing(description_path(path)) as beside, replacing(path) as temporary:
        beside.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        temporary.write_bytes(exported.serialize())
        return check_export(program, load_stablehlo(temporary), images)


def load_stablehlo(path: str | os.PathLike[str]) -> Run:
    """Returns the function from images to logits that a file holds."""
    exported = export.deserialize(bytearray(Path(path).read_bytes()))
    call = jax.jit(exported.call)
    return lambda images: np.asarray(call(images))


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the description beside a StableHLO file."""
    return json.loads(description_path(path).read_text(encoding="utf-8"))


def description_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of the description of a StableHLO file."""
    return Path(f"{os.fspath(path)}.json")

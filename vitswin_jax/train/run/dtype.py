"""The dtype of a run's computation: `config.model.dtype`; the device decides for "auto"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitswin_jax.core.json import read_json
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.runs import CONFIG

log = logger(__name__)

AUTO = "auto"
DTYPES = {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}
"""Platform -> the fastest type that trains as float32 does, without scaling the loss."""
BFLOAT16_SINCE = 8.0
"""Compute capability of the first NVIDIA GPUs that multiply bfloat16; older ones emulate it."""


def dtype_for(device: Any) -> str:
    """Returns the dtype of "auto" on a jax.Device, or on a device described without hardware."""
    capability = getattr(device, "compute_capability", None)
    if device.platform == "gpu" and float(capability or BFLOAT16_SINCE) < BFLOAT16_SINCE:
        return "float32"
    return DTYPES.get(device.platform, "float32")


def with_dtype(config: ConfigDict, device: Any, workdir: Path | None = None) -> ConfigDict:
    """Returns a config whose `model.dtype` is a type; one that is not "auto" stays as it is.

    A run that is in `workdir` already keeps the type that it began with, and logs that where a new
    run would compute in another. The start of a run tells its type (train.run.announce).
    """
    if config.model.dtype != AUTO:
        return config
    here = dtype_for(device)
    began = None if workdir is None else _began_with(workdir / CONFIG)
    chosen = began or here
    config = config.copy_and_resolve_references()
    config.model.dtype = chosen
    if chosen != here:
        log.info("computes in %s, as at the start of the run (a new run on %s would compute in "
        "%s).",
                 chosen, device.platform, here)  # fmt: skip
    return config


def _began_with(path: Path) -> str | None:
    """Returns the type in the config of a run; None where there is no run, or an unreadable one."""
    if not path.is_file():
        return None
    schema = {
        "type": "object",
        "required": ["model"],
        "properties": {
            "model": {
                "type": "object",
                "required": ["dtype"],
                "properties": {"dtype": {"enum": sorted({*DTYPES.values(), "float16"})}},
            }
        },
    }
    try:
        return read_json(path, schema)["model"]["dtype"]
    except UserError:  # which the claim of the folder tells
        return None

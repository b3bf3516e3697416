"""A run's folder: what its files are called, and what of its config may change."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from vitswin_jax.core.types import UserError
from vitswin_jax.models.fields import EXECUTION
from vitswin_jax.train.run.plan import UNITS
from vitswin_jax.weights.runs import CHECKPOINTS, METRICS

__all__ = ["CHECKPOINTS", "METRICS"]

CONFIG = "config.json"
REPORT = "report.html"
PROFILE = "profile"
START = "start.json"
ACCEPTED = "accepted_data.json"
STOP = "stop"
"""A file that a user, or `vitswin stop`, puts into a workdir for the run to end with results."""

CADENCES = ("log", "eval", "checkpoint", "keep_every")
DATASET = "data.dataset"
"""May be another place of the same data, which their fingerprint shows."""
MAY_CHANGE = (  # keys that change how a run computes or reports, not what
    "compare_to",
    "data.data_dir",
    "data.outside_files",
    "data.workers",
    "data.eval_batch_size",
    "ema.evaluate",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    *(f"model.{name}" for name in EXECUTION),
    "pretrain.probe_every",
    "pretrain.probe_images",
    "run.keep_checkpoints",
    "run.keep_best",
    "run.final",
    *(f"run.{what}_{unit}" for what in CADENCES for unit in UNITS),
)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"section.key": value} of a nested mapping."""
    return flatten_dict(dict(config), sep=".")


def check_shared(workdir: Path, *, patience: float = 60.0) -> None:
    """Raises UserError where this host does not see the config.json that the first host wrote.

    A network's folder may show it late; `patience` is in seconds.
    """
    give_up = time.monotonic() + patience
    while not (workdir / CONFIG).exists():
        if time.monotonic() > give_up:
            raise UserError(
                f"workdir {workdir}: must be one folder that all hosts see, and what the first "
                "host wrote is not here."
            )
        time.sleep(0.2)

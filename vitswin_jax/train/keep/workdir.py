"""The workdir of a run: names of its files, and the config keys that may change."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from vitswin_jax.core.types import UserError
from vitswin_jax.models.fields import EXECUTION
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.train.run.plan import UNITS, Count
from vitswin_jax.weights.runs import CONFIG

REPORT = "report.html"
PROFILE = "profile"
START = "start.json"
ACCEPTED = "accepted_data.json"
LOCAL = "local.json"
"""A name of the run, by which it finds its sets on the disks of its hosts."""
LOGGED = "loggers.json"
"""What each service of `config.loggers` calls the run."""
STOP = "stop"
"""A file that a user, or `vitswin stop`, puts into a workdir for the run to end with results."""

CADENCES = ("log", "eval", "checkpoint", "keep_every")
DATASET = "data.dataset"
"""May be another place of the same data, which their fingerprint shows."""
LENGTH = tuple(Count("optim", what).key(unit) for what in ("total", "cooldown") for unit in UNITS)
"""Keys of `config.optim` by which a run is extended or shortened."""
MAY_CHANGE = (  # keys that change how long a run is, how it computes or reports, not what
    "notes",
    "loggers",
    "project",
    *(f"optim.{key}" for key in LENGTH),
    "run.patience",
    "compare_to",
    "data.data_dir",
    "data.outside_files",
    "data.workers",
    "data.eval_batch_size",
    "ema.evaluate",
    "mesh.slices",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    *(f"model.{name}" for name in EXECUTION),
    "pretrain.probe_every",
    "pretrain.probe_images",
    "run.keep_checkpoints",
    "run.keep_best",
    "run.final",
    "run.local_dir",
    "run.local_seconds",
    "run.local_copies",
    *(f"run.{what}_{unit}" for what in CADENCES for unit in UNITS),
)

ADDED: Mapping[str, Any] = {
    "quantize": "none",
    "data.img_sizes": [],
    **dict.fromkeys(
        f"pretrain.{key}"
        for key in (
            "method",
            "mask_ratio",
            "mask_patch",
            "norm_window",
            "norm_pix",
            "decoder_dim",
            "decoder_depth",
            "decoder_heads",
            "out_dim",
            "hidden_dim",
            "bottleneck_dim",
            "momentum",
            "student_temp",
            "teacher_temp",
            "warmup_teacher_temp",
            "warmup_teacher_temp_epochs",
            "freeze_last_layer_epochs",
            "centering",
            "center_momentum",
            "patch_weight",
            "shared_head",
            "mask_prob",
            "koleo_weight",
        )
    ),
    "optim.accum_at_once": False,
    "distill.features": None,
    "distill.loss": "cosine",
    "distill.beta": 1.0,
    "augment.local_crops": 0,
    "augment.local_size": None,
    "augment.local_scale": [0.05, 0.4],
    "augment.blur": [0.0, 0.0, 0.0],
    "augment.solarize": [0.0, 0.0, 0.0],
    "run.local_dir": "",
    "run.local_seconds": 60.0,
    "run.local_copies": False,
}
"""Keys that were added to configs, each with the value that means what runs did before it."""


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"section.key": value} of a nested mapping."""
    return flatten_dict(dict(config), sep=".")


def as_written_now(config: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's config.json, flat, with the keys of `now` that its version did not have yet.

    A field of the model that was added since has the default of the model's name.
    """
    flat = flatten(config)
    added: dict[str, Any] = dict(ADDED)
    with contextlib.suppress(UserError):  # of a name that is none
        fields = model_kwargs(str(flat["model.name"])) if "model.name" in flat else {}
        added |= {f"model.{key}": value for key, value in fields.items()}
    return {key: value for key, value in added.items() if key in now} | flat


def check_shared(workdir: Path, *, patience: float = 60.0) -> None:
    """Raises UserError where this host does not see the config.json that the first host wrote.

    A network's folder may show it late; `patience` is in seconds.
    """
    give_up = time.monotonic() + patience
    while not (workdir / CONFIG).exists():
        if time.monotonic() > give_up:
            raise UserError(
                f"workdir {workdir}: must be one folder that all hosts see, but this host does "
                "not see the files of host 0."
            )
        time.sleep(0.2)

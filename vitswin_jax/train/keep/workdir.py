"""A run's folder: whose it is, and what its files are called."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from vitswin_jax.core.types import UserError
from vitswin_jax.models.fields import EXECUTION
from vitswin_jax.train.run.plan import UNITS

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"
PROFILE = "profile"
START = "start.json"

CADENCES = ("log", "eval", "checkpoint", "keep_every")
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


def claim_workdir(workdir: str | os.PathLike[str], config: Mapping[str, Any]) -> Path:
    """Makes a folder the home of the run that `config` (plain data) describes; returns its path.

    An empty or absent folder gets a config.json; one that has it must be the same run's, so that
    the run goes on (`MAY_CHANGE` names what may differ). Raises UserError for another run's folder,
    with every key that differs, and for one that cannot be written.
    """
    if "://" in str(workdir):
        raise UserError(f"workdir {workdir}: must be a folder; mount the bucket (docs/hosts.md).")
    workdir = Path(workdir).expanduser()
    config = json.loads(json.dumps(config))  # tuples become lists, as they are in the file
    path = workdir / CONFIG
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same_run(path, config)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(13, "Permission denied", str(workdir))
        if jax.process_index() == 0:
            part = path.with_suffix(".part")
            part.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            part.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"workdir {workdir}: cannot be written ({reason}).") from error
    return workdir


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


def _check_same_run(path: Path, config: Mapping[str, Any]) -> None:
    try:
        theirs = flatten(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); choose another --workdir.") from error
    ours = flatten(config)
    missing = object()
    differences = [
        f"{key} was {theirs.get(key, 'absent')} and is {ours.get(key, 'absent')}"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in MAY_CHANGE and ours.get(key, missing) != theirs.get(key, missing)
    ]
    if differences:
        raise UserError(
            f"workdir {path.parent}: holds a run of another config: {'; '.join(differences)}. "
            "Choose another --workdir, or remove this one."
        )

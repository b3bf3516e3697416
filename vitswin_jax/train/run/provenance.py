"""Facts that the weights files and the checkpoints of a run state about it."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from vitswin_jax.core.version import __version__
from vitswin_jax.train.run.announce import SCHEDULE
from vitswin_jax.train.run.prepare import Run
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.weights.files import describe
from vitswin_jax.weights.formats.orbax import WEIGHTS


def metadata_of(config: ConfigDict, run: Run, command: str | None) -> dict[str, Any]:
    """Returns the metadata of a run's weights files, without the step and its numbers."""
    origin = None if run.start.origin is None else dataclasses.asdict(run.start.origin)
    data = ("dataset", "data_dir", "train_split", "test_split", "holdout")
    provenance = {key: config.data[key] for key in data} | {
        "multi_label": run.train.multi_label,
        "init_from": origin,
        "seed": config.seed,
        "command": command,
        "version": __version__,
    }
    metadata = {"name": config.model.name, "preprocess": run.preprocess, "provenance": provenance}
    if isinstance(run.options.task, Supervised):
        metadata["class_names"] = run.train.class_names
    return metadata


def facts_of(config: ConfigDict, run: Run, command: str | None) -> dict[str, Any]:
    """Returns the facts that each checkpoint of a run states besides its arrays."""
    lora, ema = run.options.lora, run.options.ema
    weights = {
        "metadata": describe(run.model, metadata_of(config, run, command)).as_json(),
        "average": ema is not None and ema.evaluate,
        "adapters": None if lora is None else lora.scale,
    }
    return {WEIGHTS: weights, SCHEDULE: run.plan.schedule_counts()}

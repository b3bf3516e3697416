"""`config.pretrain`: the section of a run without labels, its probes, and the keys it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitswin_jax.core.types import Source, UserError
from vitswin_jax.data.pipeline import EvalBatches
from vitswin_jax.data.sources.splits import Subset
from vitswin_jax.train.keep.workdir import flatten
from vitswin_jax.train.run.plan import Plan, due

ABOUT_LABELS: Mapping[str, Any] = {  # or about the classes that images show: key -> off
    "augment.mixup_alpha": 0.0,
    "augment.cutmix_alpha": 0.0,
    "augment.label_smoothing": 0.0,
    "augment.erase_prob": 0.0,
    "data.class_weights": None,
    "distill.teacher": None,
    "run.keep_best": 0,
    "run.final": "last",
    "compare_to": None,
}


@dataclass(frozen=True)
class Probes:
    """Probes of the encoder's features by labels: how often, and the images they learn from."""

    every: int
    """In evaluations."""
    batches: EvalBatches
    num_classes: int

    def due_at(self, step: int, plan: Plan) -> bool:
        """Returns whether the features are measured at an evaluation."""
        return due(step, plan.eval_every * self.every, total=plan.total_steps)


def model_section(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the arguments of `create_pretraining` in a config; None for a classifier.

    Raises UserError that lists what other sections say about labels.
    """
    section = {
        key: value for key, value in config["pretrain"].items() if not key.startswith("probe_")
    }
    given = [f"pretrain.{key}={value!r}" for key, value in section.items() if value is not None]
    if section["method"] is None:
        if given:
            raise UserError(
                f"{', '.join(given)} needs pretrain.method, which is None; set it to "
                "'simmim' or 'mae'."
            )
        return None
    flat = flatten(config)
    wrong = [f"{key}={flat[key]!r}" for key, off in ABOUT_LABELS.items() if flat[key] != off]
    if wrong:
        raise UserError(
            f"pretrain.method={section['method']!r} uses whole images and no labels, so it "
            f"cannot use {', '.join(wrong)}; keep the default of these keys (configs/base.py)."
        )
    return section


def make_probes(
    train: Source,
    test: Source,
    make_batches: Callable[[Source], EvalBatches],
    pretrain: Mapping[str, Any],
) -> Probes | None:
    """Returns the probes of `config.pretrain`, None if they are off or no class can be probed.

    They learn from `probe_images` of the training images, spread evenly over all of them. Raises
    UserError for numbers that are negative.
    """
    if pretrain["method"] is None:
        return None
    probe_every, probe_images = pretrain["probe_every"], pretrain["probe_images"]
    if probe_every < 0 or probe_images < 1:
        raise UserError(
            f"pretrain.probe_every={probe_every} must be 0 (never) or more, and "
            f"pretrain.probe_images={probe_images} above 0."
        )
    if not probe_every or train.multi_label or len(test.class_names) < 2:
        return None
    chosen = np.unique(np.linspace(0, len(train) - 1, min(probe_images, len(train))).round())
    part = Subset(train, chosen.astype(int), name=f"{train.name}, {len(chosen)} images")
    return Probes(probe_every, make_batches(part), len(test.class_names))

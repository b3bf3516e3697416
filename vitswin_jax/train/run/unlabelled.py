"""`config.pretrain`: the section of a run without labels, its probes, and the keys it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vitswin_jax.core.types import Source, UserError
from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.augment.views import MultiCrop, Views
from vitswin_jax.data.pipeline import EvalBatches, Transform
from vitswin_jax.data.sources.splits import Subset
from vitswin_jax.models.pretraining import METHODS
from vitswin_jax.train.keep.workdir import flatten
from vitswin_jax.train.optim.ema import Ema, Momentum
from vitswin_jax.train.run.plan import Plan, due
from vitswin_jax.train.run.sizes import at_size
from vitswin_jax.train.task.masked import Masked
from vitswin_jax.train.task.self_distilled import SelfDistilled
from vitswin_jax.train.task.task import Task

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

FOR_DINO: Mapping[str, Any] = {"ema.decay": None, "data.img_sizes": ()}
"""What self-distillation does not take besides: the average is its teacher, and it has sizes."""


class Unlabelled(NamedTuple):
    """A run without labels."""

    method: str
    """Its name in results."""
    why: str
    """The keys of the config that say so."""


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
                f"{', '.join(given)} needs pretrain.method, which is None; set it to one of "
                f"{', '.join(METHODS)}."
            )
        return None
    flat = flatten(config)
    wrong = [f"{key}={flat[key]!r}" for key, off in ABOUT_LABELS.items() if flat[key] != off]
    own = FOR_DINO if section["method"] == "dino" else {}
    if twice := [f"{key}={flat[key]!r}" for key, off in own.items() if flat[key] != off]:
        raise UserError(
            f"pretrain.method='dino' has an average and image sizes of its own "
            f"(pretrain.momentum, augment.local_size), and {', '.join(twice)} is not for it; leave "
            "it out."
        )
    if wrong:
        raise UserError(
            f"pretrain.method={section['method']!r} uses whole images and no labels, so it "
            f"cannot use {', '.join(wrong)}; keep the default of these keys (configs/base.py)."
        )
    return section


def make_views(transform: Transform, views: Views, method: str | None) -> Transform:
    """Returns the transform to the views that a method learns from: one, or several (`Views`).

    Raises UserError if `views` has options that no method reads, or a Python user's function makes
    the images.
    """
    if method != "dino":
        views.check_unused()
        return transform
    if not isinstance(transform, TrainTransform):
        raise UserError(
            "pretrain.method='dino' makes several views of an image by config.augment, so it takes "
            "no augment function."
        )
    return views.of(transform)


def make_task(method: str, model: Any, transform: Transform, plan: Plan) -> tuple[Task, Ema | None]:
    """Returns the task of a model without labels, and the average that is a teacher, if it has one.

    Raises UserError for small views whose size the model cannot have.
    """
    if method != "dino":
        return Masked(), None
    small, fit = None, None
    if isinstance(transform, MultiCrop) and transform.local is not None:
        height, width = transform.local.img_size
        small, fit = at_size(model, (height, width), key="augment.local_size")

    def steps(epochs: float) -> int:
        return round(epochs * plan.steps_per_epoch)

    task = SelfDistilled(
        model,
        small,
        fit,
        warmup_steps=steps(model.warmup_teacher_temp_epochs),
        frozen_steps=steps(model.freeze_last_layer_epochs),
    )
    return task, Momentum(model.momentum, total_steps=plan.total_steps)


def make_probes(
    train: Source,
    test: Source,
    make_batches: Callable[[Source], EvalBatches],
    unlabelled: Unlabelled | None,
    pretrain: Mapping[str, Any],
) -> Probes | None:
    """Returns the probes of `config.pretrain`, None if they are off or no class can be probed.

    A run with labels has none. They learn from `probe_images` of the training images, spread evenly
    over all of them. Raises UserError for numbers that are negative.
    """
    if unlabelled is None:
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

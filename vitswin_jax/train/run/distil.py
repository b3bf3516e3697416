"""`config.distill`: the teacher of a run, and what the student learns from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitswin_jax.core.choices import wrong_choice
from vitswin_jax.core.types import Source, UserError
from vitswin_jax.nn.layers import pair
from vitswin_jax.train.keep.workdir import flatten
from vitswin_jax.train.run.start import Start, open_teacher
from vitswin_jax.train.run.unlabelled import Unlabelled
from vitswin_jax.train.task.distill import Distillation
from vitswin_jax.train.task.features import (
    FEATURES,
    FeatureDistillation,
    FeaturesOnly,
    LabelsAndFeatures,
    of_outputs,
)
from vitswin_jax.train.task.mixing import Mixing
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.train.task.task import Task

OF_LOGITS: Mapping[str, Any] = {"kind": "hard", "temperature": 1.0}
"""Keys that only distillation of logits reads, with their defaults."""
OF_FEATURES: Mapping[str, Any] = {"loss": "cosine", "beta": 1.0}
"""Keys that only distillation of features reads, with their defaults."""
ABOUT_LABELS: Mapping[str, Any] = {
    "augment.label_smoothing": 0.0,
    "data.class_weights": None,
    "run.keep_best": 0,
    "run.final": "last",
    "compare_to": None,
}
"""Keys that need labels, each with the value that turns it off."""
METHOD = "features"
"""The name, in results, of training by a teacher's features without labels."""


def check_distill(config: Mapping[str, Any]) -> Unlabelled | None:
    """Returns the method of a run without labels; None for a run with labels.

    Raises UserError for keys of `config.distill` that nothing reads, and, without labels, for what
    other sections say about them.
    """
    section, method = config["distill"], config["pretrain"]["method"]
    features = section["features"]
    others = OF_FEATURES if features is None else OF_LOGITS
    if unread := [f"distill.{k}={section[k]!r}" for k, off in others.items() if section[k] != off]:
        advice = (
            f"needs distill.features, one of {', '.join(FEATURES)}"
            if features is None
            else f"is not read with distill.features={features!r}, which reads loss and beta"
        )
        raise UserError(f"{', '.join(unread)} {advice}.")
    if features is None:
        return None if method is None else Unlabelled(method, f"pretrain.method={method!r}")
    if wrong := wrong_choice("features", features, FEATURES):
        raise UserError(f"distill.{wrong[0]}.")
    if method is not None:
        raise UserError(
            f"pretrain.method={method!r} has no teacher; leave out distill.features={features!r}, "
            "or the method."
        )
    if section["teacher"] is None:
        raise UserError(
            f"distill.features={features!r} needs distill.teacher: a weights file, a run's workdir "
            "or a published name."
        )
    if section["alpha"] != 1:
        return None
    why = f"distill.alpha={section['alpha']:g} with distill.features={features!r}"
    flat = flatten(config)
    if labels := [f"{key}={flat[key]!r}" for key, off in ABOUT_LABELS.items() if flat[key] != off]:
        raise UserError(
            f"{why} reads no labels, so it cannot use {', '.join(labels)}; keep the default of "
            "these keys, or lower distill.alpha."
        )
    return Unlabelled(METHOD, why)


def make_distillation(
    source: Source,
    student: Start,
    *,
    teacher: str | None,
    kind: str,
    alpha: float,
    temperature: float,
    features: str | None,
    loss: str,
    beta: float,
) -> tuple[Distillation | FeatureDistillation | None, Start | None]:
    """Returns `config.distill` as an object, and the teacher's weights; None without a teacher.

    Raises UserError for a teacher of other classes, if its logits are learned, and for models that
    do not give features.
    """
    if teacher is None:
        return None, None
    opened = open_teacher(
        teacher,
        class_names=source.class_names if features is None else None,
        dtype=student.model.dtype,
        in_chans=student.preprocess.channels,
    )
    theirs, given = opened.preprocess, student.preprocess
    images = (opened.model, theirs.mean, theirs.std, given.mean, given.std)
    if features is None:
        return Distillation(*images, kind, alpha, temperature), opened
    widths = widths_of(FEATURES[features], student.model, opened.model)
    return FeatureDistillation(*images, features, loss, beta, alpha, widths), opened


def taught(
    mixing: Mixing,
    distillation: Distillation | FeatureDistillation | None,
    objective: Mapping[str, Any],
) -> Task:
    """Returns the task of labels, of a teacher, or of both; `objective` is of the labels."""
    if not isinstance(distillation, FeatureDistillation):
        return Supervised(mixing, **objective, distillation=distillation)
    if distillation.alpha == 1:
        return FeaturesOnly(distillation, mixing)
    return LabelsAndFeatures(mixing, **objective, features=distillation)


def widths_of(
    names: Sequence[str], student: nn.Module, teacher: nn.Module
) -> tuple[tuple[str, int, int], ...]:
    """Returns the name of each of the features, its width in the student and in the teacher."""
    ours, theirs = _widths(student), _widths(teacher)
    return tuple((name, ours[name], theirs[name]) for name in names)


def _widths(model: nn.Module) -> dict[str, int]:
    if not hasattr(model, "outputs"):
        raise UserError(
            f"distill.features: {type(model).__name__} has no method outputs(); "
            "docs/add_a_model.md describes it."
        )
    shape = (1, *pair(model.img_size), model.in_chans)

    def outputs(key: jax.Array, images: jax.Array) -> Any:
        return model.init_with_output(key, images, method="outputs")[0]

    key = jax.eval_shape(jax.random.key, 0)
    found = jax.eval_shape(outputs, key, jax.ShapeDtypeStruct(shape, jnp.float32))
    return {name: leaf.shape[-1] for name, leaf in of_outputs(found).items()}

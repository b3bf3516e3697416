"""The images that a model is most wrong about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from vitswin_jax.core.types import Source, UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.channels import as_rgb
from vitswin_jax.data.sources.labels import classes_of
from vitswin_jax.evaluate.evaluation import Evaluation


@dataclass(frozen=True)
class Mistake:
    """An image whose class was not named, as the model sees it: cropped and resized."""

    image: UInt8[np.ndarray, "h w 3"]
    origin: str
    true: str
    true_probability: float
    predicted: str
    predicted_probability: float


def worst_mistakes(
    evaluation: Evaluation, source: Source, preprocess: Preprocess, *, at_most: int = 24
) -> Iterator[Mistake]:
    """Yields the mistakes with the least probability for the true class, the least first.

    Raises UserError where `evaluation` is not of `source`.
    """
    probabilities, predictions = evaluation.probabilities, evaluation.predictions
    true = probabilities[np.arange(len(source)), evaluation.labels]
    wrong = np.flatnonzero(predictions != evaluation.labels)
    for i in wrong[np.argsort(true[wrong], kind="stable")][:at_most].tolist():
        record, origin = source[i], source.describe(i)
        if evaluation.labels[i] not in classes_of(record["label"]):
            raise UserError(
                f"{origin}: its class has changed since the evaluation; evaluate again."
            )
        yield Mistake(
            image=as_rgb(preprocess.image(preprocess.decode(record["image"], name=origin))),
            origin=origin,
            true=evaluation.class_names[evaluation.labels[i]],
            true_probability=float(true[i]),
            predicted=evaluation.class_names[predictions[i]],
            predicted_probability=float(probabilities[i, predictions[i]]),
        )

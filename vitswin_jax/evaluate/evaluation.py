"""Evaluation of a classifier over a whole split: every example once, and the scores."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped
from scipy.special import expit, log_softmax

from vitswin_jax.core.types import Batch, Params, UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.evaluate.step import Metrics, eval_step, features_step
from vitswin_jax.nn.forms import compiler_options


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class; the two fractions are NaN where there is nothing to divide by."""

    name: str
    examples: int
    accuracy: float  # of the examples of the class, how many were named so: recall
    precision: float  # of the examples named so, how many were of the class


@dataclass(frozen=True)
class CalibrationBin:
    """The examples whose winning probability fell into (low, high]."""

    low: float
    high: float
    examples: int
    confidence: float  # mean winning probability, NaN where there are no examples
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """A model's logits for every example of a split, in the split's order, and its scores."""

    logits: Float[np.ndarray, "n k"]
    labels: Int[np.ndarray, " n"]  # of several, the one with the largest logit
    class_names: tuple[str, ...]
    top1: float  # fractions in [0, 1]
    top5: float
    loss: float  # mean cross-entropy, in nats
    classes: tuple[ClassScore, ...]
    confusion: Int[np.ndarray, "k k"]  # [true, predicted]
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float  # expected calibration error: mean |confidence - accuracy| of the bins
    mean_average_precision: float | None = None  # where images have several labels

    @property
    def probabilities(self) -> Float[np.ndarray, "n k"]:
        """Softmax of the logits; where images have several labels, sigmoids."""
        if self.mean_average_precision is not None:
            return expit(self.logits.astype(np.float64))
        return np.exp(log_softmax(self.logits.astype(np.float64), axis=-1))

    @property
    def predictions(self) -> Int[np.ndarray, " n"]:
        """The most probable class of each example."""
        return self.logits.argmax(-1)

    @property
    def errors(self) -> int:
        """The number of wrongly classified examples."""
        return int((self.predictions != self.labels).sum())

    def least_accurate(self) -> list[ClassScore]:
        """Returns the classes' scores, the least accurate first, those without examples last."""
        return sorted(self.classes, key=lambda c: (np.isnan(c.accuracy), c.accuracy))

    def most_confused(self, *, at_most: int) -> list[tuple[str, str, int]]:
        """Returns (true, predicted, times) of the commonest errors, the commonest first."""
        k, names = len(self.class_names), self.class_names
        off = np.where(np.eye(k, dtype=bool), 0, self.confusion).ravel()
        order = np.argsort(-off, kind="stable")[:at_most].tolist()
        return [(names[i // k], names[i % k], int(off[i])) for i in order if off[i]]

    def as_json(self) -> dict[str, Any]:
        """Returns the scores as plain data, but not the logits; null where one is not defined."""
        left_out = ("logits", "labels", "class_names", "confusion")
        names = [f.name for f in dataclasses.fields(self) if f.name not in left_out]
        data = {name: getattr(self, name) for name in names}
        data["classes"] = [
            {"name": c.name, "images": c.examples, "recall": c.accuracy, "precision": c.precision}
            for c in self.classes
        ]
        data["calibration"] = [vars(row) for row in self.calibration]
        counts = {"images": len(self.labels), "errors": self.errors}
        return _without_nan(counts | data | {"confusion": self.confusion.tolist()})


def _without_nan(value: Any) -> Any:
    """Returns plain data with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def make_predict(
    model: nn.Module, params: Params, preprocess: Preprocess
) -> Callable[[Batch], Float[Array, "b k"]]:
    """Returns a compiled function from a batch, uint8 images in [0, 255], to the model's logits.

    It is the training's own evaluation step, so that it gives training's own numbers.
    """
    return _compiled(eval_step, model, params, preprocess)


def make_features(
    model: nn.Module, params: Params, preprocess: Preprocess
) -> Callable[[Batch], Float[Array, "b d"]]:
    """Returns a compiled function from a batch, uint8 images in [0, 255], to its features."""
    return _compiled(features_step, model, params, preprocess)


def _compiled(
    step: Callable[..., Metrics], model: nn.Module, params: Params, preprocess: Preprocess
) -> Callable[[Batch], Array]:
    whole = functools.partial(step, model=model, mean=preprocess.mean, std=preprocess.std)
    jitted = jax.jit(whole, compiler_options=compiler_options())
    return lambda batch: jitted(params, batch)["logits"]


def predict_dataset(
    predict: Callable[[Batch], Float[Array, "b k"]], batches: Iterable[Batch]
) -> tuple[Float[np.ndarray, "n k"], Shaped[np.ndarray, "n ..."]]:
    """Returns the logits and labels of all examples of padded, masked evaluation batches, in order.

    `predict` gives a batch's logits.
    """
    return collect(
        {"logits": predict(batch), "label": batch["label"], "mask": batch["mask"]}
        for batch in batches
    )


def collect(
    outputs: Iterable[Mapping[str, Any]],
) -> tuple[Float[np.ndarray, "n k"], Shaped[np.ndarray, "n ..."]]:
    """Returns the logits and labels of all examples of what evaluation gives of each batch.

    That is `logits` (b, k), `label` (b, ...) and `mask` (b,); rows that are padding are dropped.
    The next batch is read and started while the device works on the last one.
    """
    outputs = iter(outputs)
    pending = next(outputs, None)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    while pending is not None:
        started = next(outputs, None)
        real = np.asarray(pending["mask"]) > 0
        logits, labels = np.asarray(pending["logits"], np.float32), np.asarray(pending["label"])
        rows.append((logits[real], labels[real]))
        pending = started
    if not rows:
        raise UserError("there is nothing to evaluate: the split is empty.")
    logits, labels = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return logits, labels


def summarize(
    logits: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, "n k"],
    class_names: Sequence[str],
    *,
    bins: int = 15,
) -> Evaluation:
    """Returns the scores of predictions: accuracy, loss, per class, confusion, calibration.

    Calibration is that of Guo et al. 2017 (eq. 3): `bins` of equal width over the winning
    probability. Equal logits rank by class index, so that a constant model gains nothing by them.

    Labels of two axes (n, k) have a 1 for each class of an image (multi-label). Then the top
    prediction is right if the image has that class; each image's rank and confusion are those of
    the best-ranked of its labels; per-class scores count logits above 0 as predictions; the loss is
    the sum of the classes' binary cross-entropies; and the mean average precision is over the
    classes that have examples.

    Raises UserError where the classes of model and dataset do not fit, or a logit is not finite.
    """
    from sklearn.metrics import confusion_matrix  # 1 s to import, once a command evaluates

    several = labels > 0 if labels.ndim == 2 else None
    if several is not None:
        labels = likeliest_of_several(logits, labels)
    _check(logits, labels, class_names)
    predictions = logits.argmax(-1)
    correct = predictions == labels
    rank = _rank(logits, labels)
    confidence, losses = _confidence_and_losses(logits, labels, several)
    calibration = _calibration(confidence, correct, bins)
    indices = np.arange(len(class_names))
    return Evaluation(
        logits=logits,
        labels=labels,
        class_names=tuple(class_names),
        top1=float(correct.mean()),
        top5=float((rank < 5).mean()),
        loss=float(losses.mean()),
        classes=_per_class(labels, predictions, class_names)
        if several is None
        else _per_class(several, logits > 0, class_names),
        confusion=confusion_matrix(labels, predictions, labels=indices),
        calibration=calibration,
        calibration_error=sum(
            b.examples / len(labels) * abs(b.confidence - b.accuracy)
            for b in calibration
            if b.examples
        ),
        mean_average_precision=None if several is None else _mean_precision(several, logits),
    )


def likeliest_of_several(
    logits: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]
) -> Int[np.ndarray, " n"]:
    """Returns, of the labels that each image has, the one with the largest logit.

    By it a prediction is right where it is any of them, which is ReaL's accuracy.
    """
    return np.where(labels > 0, logits, -np.inf).argmax(-1)


def _confidence_and_losses(
    logits: np.ndarray, labels: np.ndarray, several: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The winning probability and the loss of each example."""
    logits = logits.astype(np.float64)
    if several is None:
        log_probabilities = log_softmax(logits, axis=-1)
        losses = -log_probabilities[np.arange(len(labels)), labels]
        return np.exp(log_probabilities.max(-1)), losses
    return expit(logits.max(-1)), (np.logaddexp(0, logits) - logits * several).sum(-1)


def _mean_precision(several: np.ndarray, logits: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    there = several.any(0)  # of a class without examples there is none
    return float(average_precision_score(several[:, there], logits[:, there], average="macro"))


def _check(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> None:
    if not len(labels):
        raise UserError("there is nothing to evaluate: the split is empty.")
    if logits.shape[1] != len(class_names):
        raise UserError(
            f"the model has {logits.shape[1]} classes, but the dataset has {len(class_names)}."
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise UserError(
            f"labels run from {labels.min()} to {labels.max()}; "
            f"with {len(class_names)} classes they must lie in [0, {len(class_names)})."
        )
    if broken := int((~np.isfinite(logits)).any(-1).sum()):
        raise UserError(f"the model's logits are not finite for {broken} of {len(labels)} images.")


def _rank(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts the classes that come before the true one."""
    true = np.take_along_axis(logits, labels[:, None], -1)
    ahead = (logits == true) & (np.arange(logits.shape[1]) < labels[:, None])
    return ((logits > true) | ahead).sum(-1)


def _per_class(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> tuple[ClassScore, ...]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, _, examples = precision_recall_fscore_support(
        labels, predictions, labels=np.arange(len(class_names)), zero_division=np.nan
    )
    return tuple(
        ClassScore(name, int(n), float(r), float(p))
        for name, n, r, p in zip(class_names, examples, recall, precision, strict=True)
    )


def _calibration(
    confidence: np.ndarray, correct: np.ndarray, bins: int
) -> tuple[CalibrationBin, ...]:
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # an empty bin has no mean
        mean = np.bincount(index, confidence, minlength=bins) / count
        accuracy = np.bincount(index, correct, minlength=bins) / count
    columns = (column.tolist() for column in (edges[:-1], edges[1:], count, mean, accuracy))
    return tuple(CalibrationBin(*row) for row in zip(*columns, strict=True))

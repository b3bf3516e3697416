"""Probes of frozen features: nearest neighbours, a linear classifier, a few examples per class."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vitswin_jax.core.choices import Faults

KS = (5, 10, 20, 50)
"""Neighbours, DINO's 10 and 20 among them."""

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the linear probe's weight decay, of which one is chosen."""

_TEMPERATURE = 0.07  # DINO's eval_knn.py
NEIGHBOURS = 20  # of the probe that a run without labels reports
_HELD_OUT = 5  # one image in so many of the training images chooses C
_L2 = 2.0**10  # big_vision's configs/common_fewshot.py
_BIAS = 100.0  # big_vision's fewshot_lsr.py: so large that it is hardly regularised
_SEEDS = (0, 1, 2)
_SIMILARITIES = 1 << 25  # that are held at once: 128 MB


class Features(NamedTuple):
    """A model's features of the images of a split, and the images' classes."""

    x: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


def check_features(train: Features, test: Features, num_classes: int) -> None:
    """Raises UserError, which lists all that is wrong, where nothing can be learned or measured."""
    faults = Faults(
        f"{int((~np.isfinite(x)).any(-1).sum())} of {len(x)} {name} images have features that are "
        "not finite"
        for name, (x, _) in (("training", train), ("test", test))
        if not np.isfinite(x).all()
    )
    several = len(np.unique(train.labels)) > 1
    faults.need(several, f"the training images are of one class only, of {num_classes}")
    faults.check("the features cannot be measured: ")


def knn_accuracies(
    train: Features, test: Features, *, num_classes: int, ks: Sequence[int] = KS
) -> dict[int, float]:
    """Returns, for each number k of neighbours, their weighted vote's top-1 accuracy in [0, 1].

    As in DINO's eval_knn.py (Caron et al. 2021; Wu et al. 2018, section 3.4): of the k training
    images with the largest cosine similarity s, each votes for its class with exp(s / 0.07). A k
    beyond the number of training images stands for all of them.
    """
    unit_train, unit_test = (_unit(x) for x in (train.x, test.x))
    most = min(max(ks), len(train.labels))
    nearest = jax.jit(functools.partial(_nearest, k=most))
    rows = max(1, _SIMILARITIES // len(unit_train))
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(unit_test), rows):
        similarity, index = jax.device_get(nearest(unit_test[start : start + rows], unit_train))
        # The largest similarity is taken off, which changes no vote's share.
        weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / _TEMPERATURE)
        votes = np.zeros((len(index), num_classes))
        here = np.arange(len(index))
        for place in range(most):  # one neighbour more each turn
            votes[here, train.labels[index[:, place]]] += weight[:, place]
            for k in ks:
                if min(k, most) == place + 1:
                    named = votes.argmax(-1)
                    right[k] += int((named == test.labels[start : start + rows]).sum())
    return {k: count / len(test.labels) for k, count in right.items()}


def linear_probe(
    train: Features, test: Features, *, cs: Sequence[float] = CS
) -> tuple[float, float]:
    """Returns (C, top-1 accuracy in [0, 1]) of multinomial logistic regression on the features.

    Each feature is standardised by the training images' mean and deviation. The C that is best on
    one training image in five, which the others do not train on, the smaller where several are, is
    that with which all of them are then trained on.
    """
    mean, std = train.x.mean(0, dtype=np.float64), train.x.std(0, dtype=np.float64)
    train, test = (
        Features((x - mean) / np.maximum(std, 1e-5), labels) for x, labels in (train, test)
    )
    order = np.random.default_rng(0).permutation(len(train.labels))
    held_out, kept = np.split(order, [len(order) // _HELD_OUT])
    chosen = cs[0]
    if len(held_out) and len(np.unique(train.labels[kept])) > 1:
        part, rest = (Features(train.x[rows], train.labels[rows]) for rows in (kept, held_out))
        chosen = max(cs, key=lambda c: (_fitted_accuracy(part, rest, c), -c))
    return chosen, _fitted_accuracy(train, test, chosen)


def probe(train: Features, test: Features, *, num_classes: int) -> dict[str, float]:
    """Returns the top-1 accuracies, in [0, 1], of both probes that a run without labels reports."""
    check_features(train, test, num_classes)
    neighbours = knn_accuracies(train, test, num_classes=num_classes, ks=(NEIGHBOURS,))
    return {
        "test/knn_accuracy": neighbours[NEIGHBOURS],
        "test/linear_accuracy": linear_probe(train, test)[1],
    }


def few_shot_accuracies(
    train: Features,
    test: Features,
    shots: int,
    *,
    num_classes: int,
    seeds: Sequence[int] = _SEEDS,
    l2: float = _L2,
) -> list[float]:
    """Returns the top-1 accuracy, in [0, 1], of regularised least squares, once for each seed.

    It is big_vision's evaluator fewshot_lsr: `shots` training images a class, drawn by the seed,
    all of a class that has fewer; features standardised by these, a constant feature of 100, and
    targets of 1 for the class and -1 for all others.
    """
    accuracies = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(train.labels == c))[:shots] for c in range(num_classes)]
        )
        x = train.x[rows].astype(np.float64)
        mean, std = x.mean(0), x.std(0) + 1e-5
        targets = 2.0 * np.eye(num_classes)[train.labels[rows]] - 1.0
        weights = ridge_weights(_with_bias((x - mean) / std), targets, l2=l2)
        named = (_with_bias((test.x - mean) / std) @ weights).argmax(-1)
        accuracies.append(float((named == test.labels).mean()))
    return accuracies


def ridge_weights(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n k"], *, l2: float
) -> Float[np.ndarray, "d k"]:
    """Returns the w for which |x w - y|^2 + l2 |w|^2 is smallest, by the smaller of two systems."""
    n, d = x.shape
    if n >= d:
        return np.linalg.solve(x.T @ x + l2 * np.eye(d), x.T @ y)
    return x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(n), y)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _nearest(
    test: Float[Array, "m d"], train: Float[Array, "n d"], *, k: int
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    """Returns the k largest similarities, in falling order, and whose they are."""
    similarity = jax.numpy.matmul(test, train.T, precision="highest")
    values, index = jax.lax.top_k(similarity, k)
    return values, index


def _with_bias(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=_BIAS)


def _fitted_accuracy(train: Features, test: Features, c: float) -> float:
    from sklearn.exceptions import ConvergenceWarning  # 1 s to import
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        # One that needs more turns is judged, as all are, by images that it was not trained on.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train.x, train.labels)
    return float(model.score(test.x, test.labels))

"""Probes against loops, closed forms and features that a line separates."""

import math

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.evaluate.probes import (
    Features,
    check_features,
    few_shot_accuracies,
    knn_accuracies,
    linear_probe,
    ridge_weights,
)

CLASSES = 4


def noisy(n, *, seed, spread=1.0, d=6):
    """Features around a centre for each class."""
    centres = np.random.default_rng(7).normal(size=(CLASSES, d))
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    x = centres[labels] + spread * rng.normal(size=(n, d))
    return Features(x.astype(np.float32), labels)


def separable(n, *, seed):
    """The sign of one feature tells two classes apart; the others, a thousand times larger, say
    nothing.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    x = 1000 * rng.normal(size=(n, 4))
    x[:, 2] = (2 * labels - 1) * rng.uniform(1, 2, size=n)
    return Features(x.astype(np.float32), labels)


def naive_knn(train, test, k):
    """Votes one image and one neighbour at a time."""
    right = 0
    for x, label in zip(test.x.tolist(), test.labels, strict=True):
        near = []
        for y, other in zip(train.x.tolist(), train.labels, strict=True):
            dot = sum(a * b for a, b in zip(x, y, strict=True))
            near.append((dot / (math.hypot(*x) * math.hypot(*y)), other))
        votes = [0.0] * CLASSES
        for similarity, other in sorted(near, key=lambda pair: -pair[0])[:k]:
            votes[other] += math.exp(similarity / 0.07)
        right += votes.index(max(votes)) == label
    return right / len(test.labels)


@pytest.mark.parametrize("block", [1 << 25, 700])
def test_nearest_neighbours_equal_a_loop(monkeypatch, block):
    monkeypatch.setattr("vitswin_jax.evaluate.probes._SIMILARITIES", block)
    train, test = (noisy(n, seed=n, spread=3.0, d=24) for n in (90, 120))
    got = knn_accuracies(train, test, num_classes=CLASSES, ks=(1, 5, 20, 500))
    want = {k: naive_knn(train, test, k) for k in (1, 5, 20, 500)}
    assert got == pytest.approx(want)
    assert len(set(want.values())) > 2  # so that one cannot stand for another


def test_lengths_do_not_matter_to_neighbours():
    train, test = noisy(80, seed=0), noisy(40, seed=1)
    longer = Features(train.x * np.geomspace(0.01, 100, 80, dtype=np.float32)[:, None], train[1])
    assert knn_accuracies(longer, test, num_classes=CLASSES) == knn_accuracies(
        train, test, num_classes=CLASSES
    )


@pytest.mark.parametrize("n", [5, 40])  # fewer and more than the features
def test_ridge_equals_least_squares_of_a_longer_system(n):
    """|x w - y|^2 + l2 |w|^2 is |[x; sqrt(l2) I] w - [y; 0]|^2."""
    rng = np.random.default_rng(0)
    x, y, l2 = rng.normal(size=(n, 12)), rng.normal(size=(n, 3)), 2.5
    longer = np.concatenate([x, math.sqrt(l2) * np.eye(12)])
    want, *_ = np.linalg.lstsq(longer, np.concatenate([y, np.zeros((12, 3))]))
    np.testing.assert_allclose(ridge_weights(x, y, l2=l2), want, atol=1e-10)


@pytest.mark.parametrize("shots", [1, 3, 1000])
def test_few_shots_equal_big_visions_equations(shots):
    train, test = noisy(80, seed=0, spread=2.0), noisy(2000, seed=1, spread=2.0)
    kept = np.arange(80) < 50 + 10 * train.labels  # classes of several sizes: the bias matters
    train = Features(train.x[kept], train.labels[kept])
    rng = np.random.default_rng(5)
    rows = [i for c in range(CLASSES) for i in rng.permutation(np.where(train[1] == c)[0])[:shots]]
    x = train.x[rows].astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-5
    ones = 100.0 * np.ones((len(rows), 1))
    system = np.concatenate([np.concatenate([(x - mean) / std, ones], 1), 32 * np.eye(7)])
    targets = np.where(np.arange(CLASSES) == train.labels[rows][:, None], 1.0, -1.0)
    w, *_ = np.linalg.lstsq(system, np.concatenate([targets, np.zeros((7, CLASSES))]))
    scores = (test.x - mean) / std @ w[:-1] + 100 * w[-1]
    want = (scores.argmax(-1) == test.labels).mean()
    got = few_shot_accuracies(train, test, shots, num_classes=CLASSES, seeds=(5,))
    assert got == [pytest.approx(want)]
    assert len(few_shot_accuracies(train, test, shots, num_classes=CLASSES)) == 3


def test_what_a_line_separates_is_told_apart_whole():
    train, test = separable(200, seed=0), separable(100, seed=1)
    assert linear_probe(train, test)[1] == 1.0
    assert few_shot_accuracies(train, test, 100, num_classes=2, l2=1.0) == [1.0] * 3
    assert knn_accuracies(train, test, num_classes=2)[5] < 0.8  # they see the large features


def test_c_is_chosen_without_the_test_images():
    """Features that say nothing of the test's classes choose the C that they would with others."""
    train = noisy(100, seed=0, spread=3.0)
    chosen, accuracy = linear_probe(train, noisy(400, seed=1, spread=3.0))
    shuffled = noisy(400, seed=1, spread=3.0)._replace(labels=np.arange(400) // 100)
    assert linear_probe(train, shuffled)[0] == chosen
    assert accuracy > 0.3 > linear_probe(train, shuffled)[1]


def test_features_that_cannot_be_measured():
    train, test = noisy(8, seed=0), noisy(8, seed=1)
    check_features(train, test, CLASSES)
    train.x[3, 0] = np.nan
    message = r"1 of 8 training images have .* not finite; .* of one class only, of 4\."
    with pytest.raises(UserError, match=message):
        check_features(train._replace(labels=np.zeros(8, int)), test, CLASSES)

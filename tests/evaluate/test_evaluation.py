"""Scores against scikit-learn's and against loops; every example counted once."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics

from vitswin_jax.core.types import UserError
from vitswin_jax.evaluate.evaluation import predict_dataset, summarize

NAMES = tuple("abcdefgh")


def predictions(*, n=200, skill=2.0):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(NAMES), n).astype(np.int32)
    logits = rng.normal(size=(n, len(NAMES))).astype(np.float32)
    logits[np.arange(n), labels] += skill
    return logits, labels


def batches(logits, labels, *, size):
    """Padded batches whose padding would be right, were it counted."""
    for start in range(0, len(labels), size):
        n = len(labels[start : start + size])
        image = np.zeros((size, *logits.shape[1:]), np.float32)
        image[:n] = logits[start : start + size]
        image[n:, 0] = 9
        label = np.zeros(size, np.int32)
        label[:n] = labels[start : start + size]
        yield {"image": image, "label": label, "mask": (np.arange(size) < n).astype(np.float32)}


@pytest.mark.parametrize("size", [1, 7, 50, 64, 300])
def test_every_example_once_and_in_order(size):
    logits, labels = predictions()
    got = predict_dataset(lambda batch: batch["image"], batches(logits, labels, size=size))
    np.testing.assert_array_equal(got[0], logits)
    np.testing.assert_array_equal(got[1], labels)


def test_masked_rows_in_the_middle_are_dropped():
    batch = {
        "image": np.arange(8, dtype=np.float32).reshape(4, 2),
        "label": np.arange(4, dtype=np.int32),
        "mask": np.array([1, 0, 1, 0], np.float32),
    }
    logits, labels = predict_dataset(lambda batch: batch["image"], [batch, batch])
    np.testing.assert_array_equal(labels, [0, 2, 0, 2])
    np.testing.assert_array_equal(logits[:, 0], [0, 4, 0, 4])


def test_scores_equal_scikit_learns():
    logits, labels = predictions()
    result = summarize(logits, labels, NAMES)
    assert result.top1 == pytest.approx(
        sklearn.metrics.accuracy_score(labels, logits.argmax(-1)), abs=1e-12
    )
    assert result.top5 == pytest.approx(
        sklearn.metrics.top_k_accuracy_score(labels, logits, k=5), abs=1e-12
    )
    assert result.loss == pytest.approx(
        sklearn.metrics.log_loss(labels, result.probabilities), abs=1e-9
    )
    np.testing.assert_allclose(result.probabilities.sum(-1), 1, atol=1e-12)


def test_classes_and_confusion_equal_loops():
    logits, labels = predictions()
    result = summarize(logits, labels, NAMES)
    confusion = np.zeros((8, 8), int)
    for row, label in zip(logits, labels, strict=True):
        confusion[label, np.argmax(row)] += 1
    np.testing.assert_array_equal(result.confusion, confusion)
    for i, score in enumerate(result.classes):
        assert score.name == NAMES[i]
        assert score.examples == (labels == i).sum()
        assert score.accuracy == pytest.approx(confusion[i, i] / confusion[i].sum())
        assert score.precision == pytest.approx(confusion[i, i] / confusion[:, i].sum())


def test_absent_class_is_nan_and_raises_no_warning():
    logits = np.array([[2, 1, -9], [1, 2, -9]], np.float32)
    result = summarize(logits, np.array([0, 0]), ("a", "b", "never"))
    assert result.classes[0].accuracy == 0.5
    assert math.isnan(result.classes[1].accuracy)
    assert result.classes[1].precision == 0
    assert math.isnan(result.classes[2].accuracy)
    assert math.isnan(result.classes[2].precision)
    assert result.top5 == 1


def test_ties_rank_by_index():
    result = summarize(np.zeros((8, 8), np.float32), np.arange(8), NAMES)
    assert result.top1 == 1 / 8
    assert result.top5 == 5 / 8


def test_calibration_equals_a_loop():
    logits, labels = predictions(n=500)
    result = summarize(logits, labels, NAMES, bins=10)
    confidence, correct = result.probabilities.max(-1), logits.argmax(-1) == labels
    error = 0.0
    for i, found in enumerate(result.calibration):
        inside = [j for j in range(500) if i / 10 < confidence[j] <= (i + 1) / 10]
        assert found.examples == len(inside)
        if inside:
            assert found.confidence == pytest.approx(np.mean(confidence[inside]))
            assert found.accuracy == pytest.approx(np.mean(correct[inside]))
            error += len(inside) / 500 * abs(found.confidence - found.accuracy)
    assert result.calibration_error == pytest.approx(error)
    assert sum(b.examples for b in result.calibration) == 500


def test_calibration_of_known_cases():
    """Certain and right: 0. Certain and wrong: 1. A coin's 50 % on a coin: 0."""
    sure = np.array([[100, 0], [0, 100]], np.float32)
    assert summarize(sure, np.array([0, 1]), "ab").calibration_error == pytest.approx(0)
    assert summarize(sure, np.array([1, 0]), "ab").calibration_error == pytest.approx(1)
    assert summarize(0 * sure, np.array([0, 1]), "ab").calibration_error == pytest.approx(0)


def test_large_logits_have_a_finite_loss():
    logits = np.array([[1e4, 0], [1e4, 0]], np.float32)
    assert summarize(logits, np.array([0, 1]), "ab").loss == pytest.approx(5e3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, 1], "the model has 3 classes, but the dataset has 2"),
        (np.zeros((2, 2)), [0, 2], r"labels run from 0 to 2; with 2 classes .* \[0, 2\)"),
        (np.zeros((2, 2)), [-1, 0], "labels run from -1 to 0"),
        (np.zeros((0, 2)), [], "split is empty"),
        (np.array([[0, np.nan], [1, 0]]), [0, 0], "not finite for 1 of 2 images"),
    ],
)
def test_misfits_are_one_line(logits, labels, message):
    with pytest.raises(UserError, match=message):
        summarize(logits.astype(np.float32), np.array(labels, np.int32), ("a", "b"))


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="split is empty"):
        predict_dataset(lambda batch: batch["image"], [])


def test_scores_of_several_labels():
    rng = np.random.default_rng(0)
    hot = (rng.random((200, 8)) < 0.2).astype(np.float32)
    hot[np.arange(200), rng.integers(0, 7, 200)] = 1
    hot[:, 7] = 0  # a class without examples
    logits = (rng.normal(size=(200, 8)) + 2 * hot - 1).astype(np.float32)
    result = summarize(logits, hot, NAMES)

    order = np.argsort(-logits, -1)
    rows = np.arange(200)
    assert result.top1 == np.mean([hot[i, order[i, 0]] for i in rows])
    assert result.top5 == np.mean([hot[i, order[i, :5]].any() for i in rows])
    assert result.errors == sum(hot[i, order[i, 0]] == 0 for i in rows)
    best = [next(c for c in order[i] if hot[i, c]) for i in rows]
    np.testing.assert_array_equal(result.labels, best)
    assert result.mean_average_precision == pytest.approx(
        np.mean(
            [sklearn.metrics.average_precision_score(hot[:, c], logits[:, c]) for c in range(7)]
        )
    )
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(result.probabilities, p)
    assert result.loss == pytest.approx(
        -(hot * np.log(p) + (1 - hot) * np.log(1 - p)).sum(-1).mean()
    )
    for c, score in enumerate(result.classes[:7]):
        assert score.examples == hot[:, c].sum()
        assert score.accuracy == pytest.approx(
            sklearn.metrics.recall_score(hot[:, c], logits[:, c] > 0)
        )
    assert math.isnan(result.classes[7].accuracy)
    assert sum(b.examples for b in result.calibration) == 200


def test_plain_data_is_json_without_nan():
    logits, labels = predictions()
    logits[:, 3] = -99  # a class that is never named
    data = summarize(logits, labels, NAMES).as_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["classes"][3]["precision"] is None
    assert data["classes"][3]["recall"] == 0
    assert data["errors"] == round(200 * (1 - data["top1"]))
    assert np.trace(data["confusion"]) == 200 - data["errors"]

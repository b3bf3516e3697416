"""Class weights and shares against counting by hand, and classes that are numbered."""

from __future__ import annotations

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import FileSource
from vitswin_jax.data.sources.labels import (
    class_shares,
    make_class_weights,
    number_classes,
    parse_label,
)


def source(labels, names="abc"):
    several = isinstance(labels[0], tuple)
    files = [(f"{i}.png", label) for i, label in enumerate(labels)]
    return FileSource("x", files, tuple(names), "x:train", multi_label=several)


ONE = [0] * 6 + [1] * 3 + [2]
SEVERAL = [(0, 1), (0,), (1, 2), (0, 1, 2)]


def test_shares():
    np.testing.assert_allclose(class_shares(source(ONE)), [0.6, 0.3, 0.1])
    third = 1 / 3
    counts = np.array([0.5 + 1 + third, 0.5 + 0.5 + third, 0.5 + third])
    np.testing.assert_allclose(class_shares(source(SEVERAL)), counts / 4)


@pytest.mark.parametrize("labels", [ONE, SEVERAL])
@pytest.mark.parametrize("choice", ["balanced", (1, 2.0, 5), [3, 3, 3], (0.0, 0.0, 1.0)])
def test_the_mean_weight_of_the_examples_is_one(labels, choice):
    weights = make_class_weights(source(labels), choice)
    examples = [np.mean([weights[c] for c in np.atleast_1d(label)]) for label in labels]
    assert np.mean(examples) == pytest.approx(1)
    if choice != "balanced":
        np.testing.assert_allclose(np.array(weights) / sum(weights), np.array(choice) / sum(choice))


def test_balanced_classes_have_equal_parts_of_the_loss():
    """scikit-learn's own: n / (k count)."""
    from sklearn.utils.class_weight import compute_class_weight

    weights = make_class_weights(source(ONE), "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(ONE))
    np.testing.assert_allclose(weights, expected)


def test_none_is_none():
    assert make_class_weights(source(ONE), None) is None


@pytest.mark.parametrize("choice", ["equal", (1, 2), (1, 2, -1), (0, 0, 0), 3, (1, 2, "3"),
                                    (1, 2, float("nan"))])  # fmt: skip
def test_what_are_no_weights_is_one_line(choice):
    with pytest.raises(UserError, match=r"^data\.class_weights=.*'balanced', or 3 numbers, 0 or"):
        make_class_weights(source(ONE), choice)


def test_a_class_without_examples_cannot_be_balanced():
    with pytest.raises(UserError, match=r"x:train has no example of b, d; give a weight for each"):
        make_class_weights(source([0, 2, 2], names="abcd"), "balanced")


def test_classes_are_numbered():
    assert number_classes(["b", "a", "b"], None, "x") == (("a", "b"), {"a": 0, "b": 1})
    assert number_classes(["10", "9"], None, "x")[0] == ("9", "10")
    assert number_classes(["10", "9", "a"], None, "x")[0] == ("10", "9", "a")
    names, numbers = number_classes(["1", "owl"], ["owl", "wren"], "x")
    assert names == ("owl", "wren") and numbers["1"] == numbers["wren"] == 1
    with pytest.raises(UserError, match=r"^x: has no class 2, rook among its 2\."):
        number_classes(["2", "rook", "0"], ["owl", "wren"], "x")


def test_labels_are_parsed():
    assert parse_label(" a b; c ;a b") == ("a b", "c")
    assert parse_label("a;;b") == parse_label("") == parse_label(" ") == ()

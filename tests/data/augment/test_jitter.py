"""Colour jitter's ranges and order, by operations that only count."""

from collections import Counter

import numpy as np
import pytest

from vitswin_jax.data.augment import jitter, ops
from vitswin_jax.data.augment.jitter import color_jitter

IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture
def calls(monkeypatch):
    made = []
    for name in ("brightness", "contrast", "color", "hue"):
        record = lambda image, amount, n=name: made.append((n, amount)) or image  # noqa: E731
        monkeypatch.setattr(jitter.ops, name, record)
    return made


def test_factors_and_hue_are_uniform_and_every_order_is_as_likely(calls):
    rng = np.random.default_rng(0)
    for _ in range(2400):
        color_jitter(IMAGE, rng, strength=0.4, hue=0.1)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "color": (0.6, 1.4)}
    for name, (low, high) in (ranges | {"hue": (-0.1, 0.1)}).items():
        amounts = [amount for called, amount in calls if called == name]
        assert len(amounts) == 2400
        np.testing.assert_allclose(np.histogram(amounts, 4, (low, high))[0], 600, atol=110)
    orders = Counter(tuple(name for name, _ in calls[i : i + 4]) for i in range(0, 9600, 4))
    assert len(orders) == 24
    assert 50 < min(orders.values()) < max(orders.values()) < 160


def test_strength_and_hue_are_apart(calls):
    color_jitter(IMAGE, np.random.default_rng(0), strength=0.0, hue=0.2)
    assert [name for name, _ in calls] == ["hue"]
    calls.clear()
    color_jitter(IMAGE, np.random.default_rng(0), strength=0.3, hue=0.0)
    assert sorted(name for name, _ in calls) == ["brightness", "color", "contrast"]


def test_the_image_is_changed_by_each_in_turn():
    rng = np.random.default_rng(5)
    state = rng.bit_generator.state
    result = color_jitter(IMAGE, rng, strength=0.4, hue=0.0)
    rng.bit_generator.state = state
    factors, expected = rng.uniform(0.6, 1.4, 3), IMAGE
    for index in rng.permutation(3):
        change = (ops.brightness, ops.contrast, ops.color)[index]
        expected = change(expected, factors[index])
    np.testing.assert_array_equal(result, expected)
    assert (result != IMAGE).any()

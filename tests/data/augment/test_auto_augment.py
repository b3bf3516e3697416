"""AutoAugment's sub-policies, by operations that only count."""

import math
from collections import Counter

import numpy as np
import pytest

from vitswin_jax.data.augment.auto_augment import POLICIES, AutoAugment, parse_auto_augment
from vitswin_jax.data.augment.policies import TIMM_OPS, Op, ThreeAugment

IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_25_pairs_of_known_operations(name):
    policy = POLICIES[name]
    assert [len(pair) for pair in policy] == [2] * 25
    for op, prob, magnitude in (op for pair in policy for op in pair):
        assert op in TIMM_OPS
        assert 0 <= prob <= 1
        assert magnitude in range(11)


def test_operations_act_as_often_as_the_papers_probabilities_say(monkeypatch):
    """Each sub-policy is one of 25, so an operation's rate is the mean of its probabilities."""
    made = Counter()
    for name in TIMM_OPS:
        count = lambda image, *_, n=name, **__: made.update([n]) or image  # noqa: E731
        monkeypatch.setitem(TIMM_OPS, name, Op(count))
    rng, times = np.random.default_rng(0), 4000
    for _ in range(times):
        AutoAugment("original")(IMAGE, rng, fill=(0, 0, 0), interpolation="bicubic")
    # Sums over arXiv:1805.09501, table 9.
    sums = {"Equalize": 11.2, "PosterizeOriginal": 2.8, "Rotate": 3.6, "Solarize": 3.6}
    sums |= {"AutoContrast": 1.2, "Invert": 1.8, "Color": 3.8, "Contrast": 2.0, "ShearX": 0.6}
    sums |= {"Sharpness": 0.4}
    assert set(made) == set(sums)
    for name, total in sums.items():
        expected = times * total / 25
        assert abs(made[name] - expected) < 5 * math.sqrt(expected), name


def test_variants_differ_in_posterize_alone():
    for name, posterize in (("original", "PosterizeOriginal"), ("v0", "Posterize")):
        for plain, other in zip(POLICIES[name], POLICIES[f"{name}r"], strict=True):
            swapped = [(op.replace(posterize, "PosterizeIncreasing"), *how) for op, *how in plain]
            assert swapped == list(other)
    assert sum(op == "PosterizeIncreasing" for pair in POLICIES["v0r"] for op, *_ in pair) == 2


def test_spellings():
    assert parse_auto_augment("original") == AutoAugment("original")
    assert parse_auto_augment("v0-mstd0.5") == AutoAugment("v0", 0.5)
    assert parse_auto_augment("3a") == ThreeAugment()
    for text in ("orignal", "v0-m9", "v0-mstd0.5-mstd1", "3a-mstd1"):
        message = parse_auto_augment(text)
        assert isinstance(message, str)
        assert "3a" in message
        assert "original, originalr, v0, v0r" in message

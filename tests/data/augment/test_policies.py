"""How often and how strongly policies act, by operations that only count; what strings mean."""

import math
from collections import Counter

import numpy as np
import pytest

from vitswin_jax.data.augment import policies
from vitswin_jax.data.augment.policies import (
    BIG_VISION_OPS,
    TIMM_OPS,
    BigVisionRandAugment,
    Op,
    RandAugment,
    ThreeAugment,
    parse_rand_augment,
)

IMAGE = np.zeros((4, 4, 3), np.uint8)
# timm's data/auto_augment.py, _RAND_INCREASING_TRANSFORMS and big_vision's available_ops.
TIMM_PLAIN = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize"]
TIMM_PLAIN += ["SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"]
TIMM_PLAIN += ["TranslateXRel", "TranslateYRel"]
TIMM_INCREASING = ["AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing"]
TIMM_INCREASING += ["SolarizeIncreasing", "SolarizeAdd", "ColorIncreasing", "ContrastIncreasing"]
TIMM_INCREASING += ["BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY"]
TIMM_INCREASING += ["TranslateXRel", "TranslateYRel"]
BIG_VISION = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color"]
BIG_VISION += ["Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX"]
BIG_VISION += ["TranslateY", "Cutout", "SolarizeAdd"]


@pytest.fixture
def calls(monkeypatch):
    """Puts counting operations into both tables; returns the list of (name, amounts, options)."""
    made = []
    for table in (TIMM_OPS, BIG_VISION_OPS):
        for name, op in list(table.items()):

            def apply(image, *amounts, name=name, **where):
                made.append((name, amounts, where))
                return image

            level = None if op.amount is None else (lambda level, sign: (level, sign))
            monkeypatch.setitem(table, name, Op(apply, level, op.is_affine))
    return made


def run(policy, times):
    rng = np.random.default_rng(0)
    for _ in range(times):
        policy(IMAGE, rng, fill=(1, 2, 3), interpolation="bicubic")


@pytest.mark.parametrize(("inc", "names"), [(True, TIMM_INCREASING), (False, TIMM_PLAIN)])
def test_timms_operations_are_equally_likely_and_half_are_applied(calls, inc, names):
    run(RandAugment(m=9.0, n=2, mstd=0.5, inc=inc), 6000)
    counts = Counter(name for name, *_ in calls)
    assert set(counts) == set(names)
    assert abs(len(calls) - 6000) < 5 * math.sqrt(12_000 * 0.25)
    for count in counts.values():
        assert abs(count - 400) < 5 * math.sqrt(400)


def test_magnitudes_are_normal_cut_off_at_ten_with_either_sign(calls):
    run(RandAugment(m=9.0, mstd=0.5, inc=True), 6000)
    levels, signs = np.array([amounts[0] for _, amounts, _ in calls if amounts]).T
    assert levels.max() == 10.0
    assert abs((levels == 10).mean() - 0.0228) < 0.01  # beyond two standard deviations
    below = levels[levels < 9]
    assert abs(np.sqrt(np.mean((below - 9) ** 2)) - 0.5) < 0.03  # half a normal distribution
    assert abs(signs.mean()) < 0.05
    assert set(signs) == {-1, 1}


@pytest.mark.parametrize(
    ("policy", "low", "high"),
    [
        (RandAugment(m=7.0), 7, 7),
        (RandAugment(m=15.0), 10, 10),
        (RandAugment(m=15.0, mmax=20.0), 15, 15),
        (RandAugment(m=8.0, mstd=math.inf), 0, 8),
    ],
)
def test_magnitudes_without_a_deviation_and_uniform_ones(calls, policy, low, high):
    run(policy, 2000)
    levels = np.array([amounts[0][0] for _, amounts, _ in calls if amounts])
    assert low <= levels.min() < low + 0.1
    assert high - 0.1 < levels.max() <= high


def test_affine_operations_alone_get_fill_and_interpolation(calls):
    run(RandAugment(n=4), 200)
    given = {name: where for name, _, where in calls}
    affine = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
    assert {name for name, where in given.items() if where} == affine
    assert given["Rotate"] == {"fill": (1, 2, 3), "interpolation": "bicubic"}


def test_big_visions_operations_are_equally_likely_and_all_applied(calls):
    run(BigVisionRandAugment(2, 15.0), 3200)
    assert len(calls) == 6400
    counts = Counter(name for name, *_ in calls)
    assert set(counts) == set(BIG_VISION)
    for count in counts.values():
        assert abs(count - 400) < 5 * math.sqrt(400)
    assert {amounts[-1][0] for _, amounts, _ in calls if amounts} == {15.0}
    centres = {amounts[0] for name, amounts, _ in calls if name == "Cutout"}
    assert centres == {(row, column) for row in range(4) for column in range(4)}


def test_three_augment_is_one_of_three_each_as_likely(monkeypatch):
    made = Counter()
    for name in ("solarize", "grey", "gaussian_blur"):
        count = lambda image, *a, n=name: made.update([(n, *a)]) or image  # noqa: E731
        monkeypatch.setattr(policies.ops, name, count)
    run(ThreeAugment(), 3000)
    kinds = Counter()
    for (name, *_), count in made.items():
        kinds[name] += count
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in kinds.values())
    assert [amount for name, *amount in made if name == "solarize"] == [[128]]
    radii = [amount[0] for name, *amount in made if name == "gaussian_blur"]
    assert 0.1 <= min(radii) < 0.12 < 1.98 < max(radii) <= 2.0


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand-m9-mstd0.5-inc1", RandAugment(m=9.0, mstd=0.5, inc=True)),
        ("rand-m7-n3-p0.7-mmax20-inc0", RandAugment(m=7.0, n=3, p=0.7, mmax=20.0)),
        ("rand", RandAugment(m=10.0, n=2, p=0.5)),
        ("rand-m9-mstdinf", RandAugment(m=9.0, mstd=math.inf)),
        ("randaug(2,15)", BigVisionRandAugment(2, 15.0)),
        ("randaug(2, 10)", BigVisionRandAugment(2, 10.0)),
    ],
)
def test_policies_are_what_their_originals_spellings_say(text, policy):
    assert parse_rand_augment(text) == policy


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("rand-m9-x3-w0", "x3, w0"),
        ("rand-m9-m8", "a part given twice"),
        ("rand-p2-n0", "p2, n0"),
        ("rand-minf", "minf"),
        ("randaug(2)", "'randaug(2,15)'"),
        ("m9-mstd0.5", "'rand-m9-mstd0.5-inc1'"),
    ],
)
def test_unknown_spellings_say_what_is_not_understood(text, wrong):
    message = parse_rand_augment(text)
    assert isinstance(message, str)
    assert wrong in message
    assert "\n" not in message

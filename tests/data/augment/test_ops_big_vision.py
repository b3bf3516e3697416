"""Each operation against big_vision's own TensorFlow code (goldens/big_vision_ops.npz)."""

from pathlib import Path

import numpy as np
import pytest

from vitswin_jax.data.augment import ops_big_vision
from vitswin_jax.data.augment.policies import BIG_VISION_OPS

FOLDER = Path(__file__).parents[2] / "goldens" / "data"
GOLDENS = dict(np.load(FOLDER / "big_vision_ops.npz"))
IMAGE = np.load(FOLDER / "timm_ops.npz")["image"]


def ours(case):
    name, *centre, level = case.split()
    op, level = BIG_VISION_OPS[name], float(level)
    amounts = [tuple(map(int, centre))] if centre else []
    if op.amount is not None:
        amounts.append(op.amount(abs(level), 1 if level >= 0 else -1))
    return op.apply(IMAGE, *amounts)


@pytest.mark.parametrize("case", [case for case in GOLDENS if not case.startswith("Sharpness")])
def test_operation_equals_big_visions(case):
    np.testing.assert_array_equal(ours(case), GOLDENS[case])


@pytest.mark.parametrize("level", [0, 3, 10, 15, 20])
def test_sharpness_is_big_visions_but_for_a_level_here_and_there(level):
    """A mean that is a whole number is rounded down or not as a CPU's fused additions have it.

    That is one level of the smoothed image, which the factor (up to 3.7) multiplies.
    """
    difference = np.abs(ours(f"Sharpness {level}").astype(int) - GOLDENS[f"Sharpness {level}"])
    assert difference.max() <= 3
    assert (difference > 0).mean() < 0.005


def test_every_operation_of_the_table_has_its_golden():
    assert {case.split()[0] for case in GOLDENS} == set(BIG_VISION_OPS)


def test_overflowing_thresholds_wrap_as_uint8_does():
    """At level 10 and 20 everything is inverted, at 15 the bright half (256, 512, 384 mod 256)."""
    for threshold in (256, 512):
        np.testing.assert_array_equal(ops_big_vision.solarize(IMAGE, threshold), 255 - IMAGE)
    bright = IMAGE >= 128
    expected = np.where(bright, 255 - IMAGE, IMAGE)
    np.testing.assert_array_equal(ops_big_vision.solarize(IMAGE, 384), expected)

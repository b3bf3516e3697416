"""Each operation against timm's own result for the same level (goldens/timm_ops.npz)."""

from pathlib import Path

import numpy as np
import pytest

from vitswin_jax.data.augment import ops
from vitswin_jax.data.augment.policies import TIMM_OPS

GOLDENS = dict(np.load(Path(__file__).parents[2] / "goldens" / "data" / "timm_ops.npz"))
IMAGE = GOLDENS["image"]
FILL = (124, 116, 104)

# What no policy's table holds: by the arguments that timm's functions get.
OTHERS = {
    "grey": lambda: ops.grey(IMAGE),
    "hue -0.3": lambda: ops.hue(IMAGE, -0.3),
    "hue 0.1": lambda: ops.hue(IMAGE, 0.1),
    "Desaturate 3.2 1": lambda: ops.color(IMAGE, 1 - (0.5 + 0.5 * 0.32)),
    "Desaturate 9 1": lambda: ops.color(IMAGE, 1 - (0.5 + 0.5 * 0.9)),
    "GaussianBlur 3.2 1": lambda: ops.gaussian_blur(IMAGE, 0.1 + 1.9 * 0.32),
    "GaussianBlur 9 1": lambda: ops.gaussian_blur(IMAGE, 0.1 + 1.9 * 0.9),
}


def ours(case):
    if case in OTHERS:
        return OTHERS[case]()
    name, *how = case.split()
    interpolation = "bilinear" if how == ["bilinear"] else "bicubic"
    level, sign = (7.0, 1) if how == ["bilinear"] else (float(how[0]), int(how[1]))
    op = TIMM_OPS[name]
    amount = [] if op.amount is None else [op.amount(level, sign)]
    where = {"fill": FILL, "interpolation": interpolation} if op.is_affine else {}
    return op.apply(IMAGE, *amount, **where)


@pytest.mark.parametrize("case", [case for case in GOLDENS if case != "image"])
def test_operation_equals_timms(case):
    result = ours(case)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, GOLDENS[case])


def test_every_operation_of_the_table_has_its_golden():
    assert {case.split()[0] for case in GOLDENS} >= set(TIMM_OPS)


def test_no_operation_writes_into_its_image():
    before = IMAGE.copy()
    for case in GOLDENS:
        if case != "image":
            ours(case)
    np.testing.assert_array_equal(IMAGE, before)


def test_image_of_one_colour_has_no_contrast_to_stretch():
    flat = np.full((9, 7, 3), 77, np.uint8)
    np.testing.assert_array_equal(ops.autocontrast(flat), flat)
    np.testing.assert_array_equal(ops.equalize(flat), flat)


def test_no_bits_are_black_and_eight_are_everything():
    """timm's policies ask for both; Pillow of today refuses none, and its older releases did so."""
    assert not ops.posterize(IMAGE, 0).any()
    np.testing.assert_array_equal(ops.posterize(IMAGE, 8), IMAGE)


def test_hue_of_a_whole_turn_in_parts():
    """Red a third of a turn on is green."""
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    turned = ops.hue(red, 1 / 3)
    assert (turned[..., 1] == 255).all()
    assert (turned[..., [0, 2]] < 8).all()

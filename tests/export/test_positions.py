"""Tables of positions inside a program are those that NumPy makes for each size that is known."""

import functools

import jax
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.export.positions import formula, resized
from vitswin_jax.weights import resize

METHODS = (
    resize.bicubic,
    resize.bicubic_by_scale,
    resize.bicubic_antialiased,
    resize.bicubic_by_corners,
    resize.bilinear,
    resize.bilinear_antialiased,
    resize.corner_linear,
)
SIZES = (((14, 14), (16, 9)), ((1, 3), (4, 2)), ((5, 4), (1, 23)), ((5, 4), (5, 4)))


@pytest.mark.parametrize(
    "method", mostly_long(METHODS, METHODS[2:3]), ids=lambda method: method.__name__
)
def test_it_is_the_sources_method(method):
    rng = np.random.default_rng(0)
    for old, new in SIZES:
        table = rng.normal(size=(1, 2 + old[0] * old[1], 4)).astype(np.float32)
        want = resize.resize_pos_embed(table, old=old, new=new, method=method)
        with jax.default_matmul_precision("highest"):
            program = jax.jit(functools.partial(resized, old=old, new=new, method=method))
            got = program(table)
        np.testing.assert_allclose(got, want, atol=1e-5)
        np.testing.assert_array_equal(got[:, :2], table[:, :2])
        if old == new:
            np.testing.assert_array_equal(got, table)
        else:  # the methods differ by more than that
            others = [resize.resize_pos_embed(table, old=old, new=new, method=m) for m in METHODS]
            assert sum(np.abs(other - got).max() < 1e-3 for other in others) < len(METHODS) - 1


def test_a_method_without_a_formula_is_named():
    with pytest.raises(UserError, match=r"--any-size: .* by 'geometric', which has no form"):
        formula(resize.geometric)

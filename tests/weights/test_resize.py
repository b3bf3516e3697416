"""Tables on other grids: what each original's own code gave, and truths of interpolation."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitswin_jax.weights import resize

GOLDENS = {}
for _name in ("resize.npz", "dino.npz"):
    with np.load(Path(__file__).parents[1] / "goldens" / "weights" / _name) as _file:
        GOLDENS |= dict(_file)

POSITIONS = [
    ("timm_pos_embed_14x14_to_24x24", 14, 24, resize.bicubic_antialiased),
    ("huggingface_dinov2_37x37_to_16x16", 37, 16, resize.bicubic),
    ("huggingface_dinov2_with_registers_37x37_to_16x16", 37, 16, resize.bicubic_antialiased),
    ("dino_37x37_to_16x16", 37, 16, resize.bicubic_by_scale),
    ("dino_14x14_to_24x24", 14, 24, resize.bicubic_by_scale),
    ("google_up_cls", 14, 24, resize.corner_linear),
    ("google_up_nocls", 14, 24, resize.corner_linear),
    ("google_big_vision_up", 14, 16, resize.corner_linear),
]
TABLES = [
    ("microsoft_rel_pos_bias_window7_to_12", 7, (12, 12), resize.bicubic),
    ("timm_table/7/12", 7, (12, 12), resize.geometric),
    ("timm_table/12/7", 12, (7, 7), resize.geometric),
    ("timm_table/7/8", 7, (8, 8), resize.geometric),
    ("timm_table/16/8", 16, (8, 8), resize.geometric),
    ("timm_table/16/8x6", 16, (8, 6), resize.geometric),
]
METHODS = [resize.bicubic, resize.bicubic_antialiased, resize.corner_linear, resize.geometric]
BY_SIZE = {*METHODS[:3], resize.bicubic_by_scale}


@pytest.mark.parametrize(("name", "old", "new", "method"), POSITIONS)
def test_positions_equal_the_originals(name, old, new, method):
    table, want = GOLDENS[f"{name}/in"], GOLDENS[f"{name}/out"]
    got = resize.resize_pos_embed(table, old=(old, old), new=(new, new), method=method)
    np.testing.assert_allclose(got, want, atol=1e-5)
    others = [
        resize.resize_pos_embed(table, old=(old, old), new=(new, new), method=other)
        for other in BY_SIZE - {method}
    ]
    assert all(np.abs(other - want).max() > 1e-2 for other in others)


@pytest.mark.parametrize(("name", "old", "new", "method"), TABLES)
def test_bias_tables_equal_the_originals(name, old, new, method):
    got = resize.resize_bias_table(GOLDENS[f"{name}/in"], old=(old, old), new=new, method=method)
    np.testing.assert_allclose(got, GOLDENS[f"{name}/out"], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=30, deadline=None)
@given(old=st.integers(1, 12), new=st.integers(1, 12))
def test_every_method_keeps_constants_and_mirror_images(method, old, new):
    old, new = 2 * old + 1, 2 * new + 1  # as bias tables are
    matrix = method(old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-9)
    if old == new and method is not resize.geometric:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-12)


def test_a_grid_may_be_any_rectangle_and_keeps_its_prefix():
    table = np.random.default_rng(0).normal(size=(1, 2 + 6 * 4, 3)).astype(np.float32)
    got = resize.resize_pos_embed(table, old=(6, 4), new=(3, 8), method=resize.bicubic)
    assert got.shape == (1, 2 + 24, 3)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[:, :2], table[:, :2])
    same = resize.resize_pos_embed(table, old=(6, 4), new=(6, 4), method=resize.bicubic)
    np.testing.assert_array_equal(same, table)


def test_input_channels_see_grey_images_alike():
    kernel = np.random.default_rng(0).normal(size=(4, 4, 3, 5)).astype(np.float32)
    for channels in (1, 2, 3, 4, 6):
        got = resize.adapt_input_channels(kernel, channels)
        assert got.shape == (4, 4, channels, 5)
        if channels % 3 == 0 or channels == 1:
            np.testing.assert_allclose(got.sum(2), kernel.sum(2), atol=1e-5)

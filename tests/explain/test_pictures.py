"""Where lines and maps are drawn."""

import numpy as np

from vitswin_jax.explain import pictures
from vitswin_jax.explain.attention import LayerAttention, on_image, window_tokens


def layer_of(size, window, shift, stride):
    tokens = window_tokens(size, window_size=window, shift=shift, pad_before_roll=True)
    weights = np.zeros((1, *tokens.shape[:1], 1, *tokens.shape[1:] * 2), np.float32)
    return LayerAttention("stage_0/block_1", weights, None, tokens, 0, size, window, stride)


def test_window_edges_lie_between_windows():
    """Windows of 2x3 on 4x6, shifted by (1, 1): they begin at rows 1, 3 and columns 1, 4."""
    layer = layer_of((4, 6), (2, 3), (1, 1), (8, 10))
    lines = pictures.window_edges(layer)
    level = {y for (y, _), (end, _) in lines if y == end}
    upright = {x for (_, x), (_, end) in lines if x == end}
    assert (level, upright) == ({8, 24}, {10, 40})
    assert sum(x1 - x0 for (_, x0), (_, x1) in lines) == 2 * 60
    assert sum(y1 - y0 for (y0, _), (y1, _) in lines) == 2 * 32


def test_maps_lie_on_their_pixels():
    heat = np.zeros((3, 4))
    heat[1, 2] = 1.0
    plane = on_image(heat, stride=(8, 6), size=(24, 22))
    assert plane.shape == (24, 22)
    y, x = np.unravel_index(plane.argmax(), plane.shape)
    assert 8 <= y < 16
    assert 12 <= x < 18
    assert plane[8:16, 12:18].min() > 0
    np.testing.assert_allclose(on_image(np.full((2, 2), 0.3), stride=(5, 5), size=(10, 9)), 0.3)

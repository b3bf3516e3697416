"""Where lines and maps are drawn."""

import numpy as np

from vitswin_jax.explain import pictures
from vitswin_jax.explain.attention import on_image
from vitswin_jax.models.geometry import BlockGeometry
from vitswin_jax.nn.windows import Cut


def test_window_edges_lie_between_windows():
    """Windows of 2x3 on 4x6, shifted by (1, 1): they begin at rows 1, 3 and columns 1, 4."""
    cut = Cut((2, 3), (1, 1), pad_before_roll=True)
    lines = pictures.window_edges(BlockGeometry("block_1", 0, (4, 6), (8, 10), cut=cut))
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

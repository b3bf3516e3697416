"""Sliding lines against Pillow's own affine map."""

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.data.augment.slide import slide

FILL = (9, 200, 77)


@pytest.mark.parametrize("shape", [(70, 45), (45, 130), (1, 9), (9, 1)])
def test_lines_slide_as_pillows_bicubic_map_moves_them(photo, shape):
    image = np.ascontiguousarray(photo[100 : 100 + shape[0], 200 : 200 + shape[1]])
    height, width = shape
    pillow = Image.fromarray(image)
    rng = np.random.default_rng(0)
    for amount in (*rng.uniform(-0.5, 0.5, 8), 0.0, -1.5):
        for axis, lines in ((1, height), (0, width)):
            length = image.shape[axis]
            sheared = [amount * (line + 0.5) for line in range(lines)]
            for shift, slope in (
                (np.array(sheared), amount),
                (np.full(lines, amount * length), 0.0),
            ):
                offset = 0.0 if slope else amount * length
                inverse = (1, slope, offset, 0, 1, 0) if axis == 1 else (1, 0, 0, slope, 1, offset)
                expected = pillow.transform(
                    pillow.size,
                    Image.Transform.AFFINE,
                    inverse,
                    Image.Resampling.BICUBIC,
                    fillcolor=FILL,
                )
                moved = slide(image, shift, axis=axis, fill=FILL)
                np.testing.assert_array_equal(moved, np.asarray(expected))


def test_a_slide_far_away_leaves_the_fill():
    moved = slide(np.zeros((5, 6, 3), np.uint8), np.full(5, 600.0), axis=1, fill=FILL)
    np.testing.assert_array_equal(moved, np.broadcast_to(np.uint8(FILL), (5, 6, 3)))

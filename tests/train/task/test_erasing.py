"""Random erasing: which boxes, how often, filled with what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.task.erasing import Erasing, draw_erased, erase


def boxes_of(erasing, *, height=100, width=80, n=4000, share=1.0):
    shares = jnp.full(n, share, jnp.float32)
    boxes = draw_erased(jax.random.key(0), height, width, shares, erasing)
    return np.asarray(boxes).T


def test_boxes_have_the_papers_areas_and_aspect_ratios():
    """Area uniform in (0.02, 1/3), the aspect's logarithm uniform; what does not fit is redrawn."""
    top, bottom, left, right = boxes_of(Erasing(erase_prob=1.0))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 100).all()
    assert (right <= 80).all()
    h, w = bottom - top, right - left
    assert (h < 100).all()
    assert (w < 80).all()
    area, aspect = h * w / 8000, h / w
    assert 0.017 < area.min() < 0.025
    assert 0.31 < area.max() < 0.35
    small = area < 0.1  # these fit whatever their aspect ratio
    counts = np.histogram(area[small], 4, (0.02, 0.1))[0]
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.06)
    logs = np.histogram(np.log(aspect[small]) / np.log(0.3), 4, (-1, 1))[0]
    np.testing.assert_allclose(logs / logs.sum(), 0.25, atol=0.06)
    assert abs((top / (100 - h)).mean() - 0.5) < 0.03


def test_areas_are_divided_by_the_count():
    top, bottom, left, right = boxes_of(Erasing(erase_prob=1.0), share=1 / 3)
    assert 0.09 < ((bottom - top) * (right - left) / 8000).max() < 0.125


def test_no_box_where_ten_do_not_fit():
    """A third of a strip's area, at most 3.3 times as long as wide, is longer than it is wide."""
    erasing = Erasing(erase_prob=1.0, erase_area=(0.3, 1 / 3))
    top, bottom, left, right = boxes_of(erasing, height=2, width=100, n=50)
    np.testing.assert_array_equal((bottom - top) * (right - left), 0)


def erased(n=64, **options):
    images = jnp.full((n, 40, 40, 3), 7.0)
    return np.asarray(
        jax.jit(erase, static_argnums=2)(jax.random.key(1), images, Erasing(**options))
    )


def test_off_by_default():
    assert (erased(n=2) == 7).all()


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_boxes_are_filled_as_the_mode_says_and_the_rest_is_untouched(mode):
    images = erased(erase_prob=1.0, erase_mode=mode)
    inside = (images != 7).all(-1)
    for image, hole in zip(images, inside, strict=True):
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns) > 0  # one full rectangle
        colours = len(np.unique(image[hole], axis=0))
        assert colours == (hole.sum() if mode == "pixel" else 1)
    values = images[inside]
    if mode == "const":
        assert (values == 0).all()
    elif mode == "pixel":
        assert abs(values.mean()) < 0.02
        assert abs(values.std() - 1) < 0.02
    else:
        firsts = np.array([image[hole][0] for image, hole in zip(images, inside, strict=True)])
        assert abs(firsts.mean()) < 0.25
        assert abs(firsts.std() - 1) < 0.2


def test_so_many_images_lose_a_box_as_the_probability_says():
    changed = (erased(n=2000, erase_prob=0.25) != 7).any((1, 2, 3))
    assert abs(changed.mean() - 0.25) < 0.05


def test_up_to_as_many_boxes_as_the_count_says():
    """Numbers are as likely from one to three, so the boxes' common area is about that of one."""
    images = erased(n=500, erase_prob=1.0, erase_count=3, erase_mode="rand")
    colours = [len(np.unique(image[(image != 7).all(-1)], axis=0)) for image in images]
    assert set(colours) == {1, 2, 3}
    share = (images != 7).all(-1).mean()
    assert 0.12 < share < 0.18


def test_chance_is_of_the_key():
    images = jnp.zeros((4, 16, 16, 3))
    erasing = Erasing(erase_prob=1.0)
    one, other = (erase(jax.random.key(seed), images, erasing) for seed in (0, 1))
    np.testing.assert_array_equal(one, erase(jax.random.key(0), images, erasing))
    assert (np.asarray(one) != np.asarray(other)).any()


def test_values_out_of_range_are_all_named():
    with pytest.raises(UserError) as error:
        Erasing(
            erase_prob=2.0,
            erase_mode="noise",
            erase_count=0,
            erase_area=(0.5, 0.1),
            erase_aspect=0.0,
        )
    for name in ("erase_prob=2", "'noise'", "erase_count=0", "erase_area=(0.5", "erase_aspect=0"):
        assert name in str(error.value)

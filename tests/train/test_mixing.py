"""Mixup, cutmix and label smoothing against their papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.train.mixing import Mixing, cutmix_box, mix, smooth_one_hot
from vitswin_jax.types import UserError

LABELS = jnp.arange(4)


def batch(height=6, width=8):
    """Four images of one colour each, and their one-hot targets."""
    images = jnp.broadcast_to(jnp.arange(4.0).reshape(4, 1, 1, 1), (4, height, width, 3))
    return images, jax.nn.one_hot(LABELS, 4), jnp.ones(4)


def test_label_smoothing_is_the_paper_formula():
    targets = smooth_one_hot(jnp.array([2]), 5, label_smoothing=0.1)
    np.testing.assert_allclose(targets, [[0.02, 0.02, 0.92, 0.02, 0.02]], atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_mixup_weights_image_and_target_alike(seed):
    """Image i has value i, so a mix of i and 3 - i tells its own share."""
    images, targets, mask = batch()
    mixed, soft = mix(jax.random.key(seed), images, targets, mask, Mixing(mixup_alpha=1.0))
    share = float(soft[0, 0])
    assert 0 < share < 1
    for i in range(4):
        np.testing.assert_allclose(mixed[i], share * i + (1 - share) * (3 - i), rtol=1e-5)
        np.testing.assert_allclose(soft[i, i], share, rtol=1e-5)
        np.testing.assert_allclose(soft[i, 3 - i], 1 - share, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_weights_the_target_by_the_pixels_that_are_left(seed):
    images, targets, mask = batch()
    mixed, soft = mix(jax.random.key(seed), images, targets, mask, Mixing(cutmix_alpha=1.0))
    assert set(np.unique(mixed[0])) <= {0.0, 3.0}
    own = (np.asarray(mixed[0, ..., 0]) == 0).mean()
    np.testing.assert_allclose(soft[0], [own, 0, 0, 1 - own], atol=1e-6)
    other = np.argwhere(np.asarray(mixed[0, ..., 0]) == 3)
    if len(other):  # what was pasted is one rectangle
        low, high = other.min(0), other.max(0) + 1
        assert len(other) == np.prod(high - low)


def test_a_box_leaves_its_share_where_it_is_not_cut_off():
    sizes = [
        float(cutmix_box(jax.random.key(i), jnp.float32(0.75), height=32, width=64).mean())
        for i in range(100)
    ]
    assert min(sizes) == pytest.approx(0.75)  # half of each side: a quarter of the image
    assert max(sizes) > 0.75  # at the edges less is cut


def test_switching_takes_each_half_of_the_time_and_leaves_the_rest():
    images, targets, mask = batch()
    mixing = Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, mix_prob=0.8, switch_prob=0.25)
    run = jax.jit(jax.vmap(lambda key: mix(key, images, targets, mask, mixing)[0][0]))
    mixed = np.asarray(run(jax.random.split(jax.random.key(0), 2000)))
    whole = (mixed == 0).all((1, 2, 3))
    blended = ~np.isin(mixed, (0.0, 3.0)).all((1, 2, 3))
    assert abs(blended.mean() - 0.8 * 0.75) < 0.04
    assert 0.2 < whole.mean() < 0.3  # cutmix's smallest boxes change nothing either


def test_padding_is_never_mixed_in():
    images, targets, _ = batch()
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])  # 0 and 3 are a pair
    mixed, soft = mix(jax.random.key(0), images, targets, mask, Mixing(mixup_alpha=1.0))
    np.testing.assert_array_equal(mixed[0], images[0])
    np.testing.assert_array_equal(soft[0], targets[0])
    assert not np.allclose(mixed[1], images[1])


def test_values_out_of_range_are_all_named():
    with pytest.raises(UserError, match=r"mixup_alpha=-1.* label_smoothing=2"):
        Mixing(mixup_alpha=-1.0, label_smoothing=2.0)

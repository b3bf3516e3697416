"""Mixup, cutmix and label smoothing against their papers' formulas and timm's own numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.task.boxes import inside_boxes
from vitswin_jax.train.task.mixing import (
    Mixing,
    blend_pairs,
    draw_boxes,
    draw_shares,
    smooth_one_hot,
)
from vitswin_jax.train.task.mixing import mix as eager_mix

mix = jax.jit(eager_mix, static_argnums=4)
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


def boxes_of(share, *, height, width, n=100):
    """Draws n boxes for one share; returns them and the share that each leaves."""

    @jax.jit
    def draw(shares):
        boxes = draw_boxes(jax.random.key(0), shares, height=height, width=width)
        return boxes, inside_boxes(boxes, height=height, width=width)

    boxes, inside = map(np.asarray, draw(jnp.full(n, share, jnp.float32)))
    return boxes, 1 - inside.mean((1, 2))


def test_a_box_leaves_its_share_where_it_is_not_cut_off():
    boxes, left = boxes_of(0.75, height=32, width=64)
    assert min(left) == pytest.approx(0.75)  # half of each side: a quarter of the image
    assert max(left) > 0.75  # at the edges less is cut
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    np.testing.assert_allclose(left, 1 - area / (32 * 64), rtol=1e-6)


def test_boxes_are_as_long_as_timm_rounds_them_and_stay_inside():
    """A share of 0.75 halves the sides: 25 and 17 of 50 and 34 pixels, both odd."""
    boxes, _ = boxes_of(0.75, height=50, width=34, n=500)
    top, bottom, left, right = boxes.T
    assert top.min() == left.min() == 0
    assert (bottom.max(), right.max()) == (50, 34)
    assert ((bottom - top).max(), (right - left).max()) == (25, 17)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_the_same_draws_give_timms_images_and_targets(mode):
    """Six images: what the first half's pair has drawn is the other half's too, backwards."""
    goldens = np.load(Path(__file__).parents[2] / "goldens" / "train" / "mixing.npz")
    share, is_cutmix, boxes = (
        goldens[f"{mode} {name}"] for name in ("share", "is_cutmix", "boxes")
    )
    whose = {"batch": [0] * 6, "pair": [0, 1, 2, 2, 1, 0], "elem": range(6)}[mode]
    targets = smooth_one_hot(jnp.asarray(goldens["labels"]), 5, label_smoothing=0.1)
    images, targets = blend_pairs(
        jnp.asarray(goldens["inputs"]),
        targets,
        share=jnp.asarray(share, jnp.float32)[np.array(whose)],
        is_cutmix=jnp.asarray(is_cutmix)[np.array(whose)],
        boxes=jnp.asarray(boxes)[np.array(whose)],
    )
    np.testing.assert_allclose(images, goldens[f"{mode} images"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, goldens[f"{mode} targets"], rtol=1e-5, atol=1e-6)


def test_shares_have_their_betas_mean_and_variance():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)): 0.0962 for 0.8, 1/12 for 1."""
    mixing = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mix_prob=1.0, switch_prob=0.3)
    share, is_cutmix = map(np.asarray, draw_shares(jax.random.key(1), 20_000, mixing))
    assert abs(is_cutmix.mean() - 0.3) < 0.02
    for which, variance in ((~is_cutmix, 1 / (4 * 2.6)), (is_cutmix, 1 / 12)):
        assert abs(share[which].mean() - 0.5) < 0.015
        assert abs(share[which].var() - variance) < 0.004
    for alone, kind in (({"mixup_alpha": 0.8}, False), ({"cutmix_alpha": 1.0}, True)):
        share, is_cutmix = draw_shares(jax.random.key(1), 50, Mixing(**alone, switch_prob=0.5))
        assert (np.asarray(is_cutmix) == kind).all()


def shares_of(mode, b, seed=0):
    """Mixes b images of one colour each; returns the share that each keeps, by its target."""
    images = jnp.broadcast_to(jnp.arange(float(b)).reshape(b, 1, 1, 1), (b, 4, 4, 3))
    mixing = Mixing(mixup_alpha=1.0, mix_mode=mode)
    mixed, soft = mix(jax.random.key(seed), images, jnp.eye(b), jnp.ones(b), mixing)
    share = np.asarray(soft).diagonal()
    expected = share * np.arange(b) + (1 - share) * np.arange(b)[::-1]
    np.testing.assert_allclose(mixed[:, 0, 0, 0], expected, rtol=1e-5)
    return share


@pytest.mark.long
def test_who_shares_a_draw():
    batch_share, pair, element = (shares_of(mode, 8) for mode in ("batch", "pair", "element"))
    assert len(set(batch_share.tolist())) == 1
    np.testing.assert_array_equal(pair, pair[::-1])
    assert len(set(pair.tolist())) == 4
    assert len(set(element.tolist())) == 8


def test_the_middle_of_an_odd_batch_is_its_own_partner():
    assert shares_of("pair", 5)[2] == 1


@pytest.mark.parametrize("mode", ["pair", "element"])
def test_some_of_the_images_are_mixed_by_each_kind_and_some_not(mode):
    images = jnp.broadcast_to(jnp.arange(64.0).reshape(64, 1, 1, 1), (64, 8, 8, 3))
    mixing = Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, mix_prob=0.7, mix_mode=mode)
    mixed = np.asarray(mix(jax.random.key(0), images, jnp.eye(64), jnp.ones(64), mixing)[0])
    one_colour = (mixed == mixed[:, :1, :1]).all((1, 2, 3))
    own = (mixed == np.asarray(images)).all((1, 2, 3))
    assert 5 < own.sum() < 40
    assert (one_colour & ~own).sum() > 5  # mixup
    assert (~one_colour).sum() > 5  # cutmix


def test_switching_takes_each_half_of_the_time_and_leaves_the_rest():
    images, targets, mask = batch()
    mixing = Mixing(mixup_alpha=1.0, cutmix_alpha=1.0, mix_prob=0.8, switch_prob=0.25)
    run = jax.jit(jax.vmap(lambda key: mix(key, images, targets, mask, mixing)[0][0]))
    mixed = np.asarray(run(jax.random.split(jax.random.key(0), 2000)))
    whole = (mixed == 0).all((1, 2, 3))
    blended = ~np.isin(mixed, (0.0, 3.0)).all((1, 2, 3))
    assert abs(blended.mean() - 0.8 * 0.75) < 0.04
    assert 0.2 < whole.mean() < 0.3  # cutmix's smallest boxes change nothing either


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
def test_padding_is_never_mixed_in(mode):
    images, targets, _ = batch()
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])  # 0 and 3 are a pair
    mixing = Mixing(mixup_alpha=1.0, mix_mode=mode)
    mixed, soft = mix(jax.random.key(0), images, targets, mask, mixing)
    np.testing.assert_array_equal(mixed[0], images[0])
    np.testing.assert_array_equal(soft[0], targets[0])
    assert not np.allclose(mixed[1], images[1])


def test_values_out_of_range_are_all_named():
    with pytest.raises(UserError, match=r"mixup_alpha=-1.* label_smoothing=2.* mix_mode='elem'"):
        Mixing(mixup_alpha=-1.0, label_smoothing=2.0, mix_mode="elem")

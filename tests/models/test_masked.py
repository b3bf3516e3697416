"""Masks, and both methods against an implementation of its own in another framework."""

import functools

import gradients
import jax
import jax.numpy as jnp
import masked_torch
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

from vitswin_jax.models.masked import cut_patches, draw_masks, enlarge, join_patches
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.shapes import parameter_shapes


def create(name):
    family, fields, method = masked_torch.CASES[name]
    return create_pretraining(create_model(family, **fields), **method)


@functools.cache
def loss_and_gradients(name):
    """Ours, by the names of the parameters."""
    model = create(name)
    params, images, masks = masked_torch.make_case(name, parameter_shapes(model))

    def loss(params):
        out = model.apply({"params": params}, jnp.asarray(images), jnp.asarray(masks), train=True)
        return out.loss.mean()

    with jax.default_matmul_precision("highest"):
        value, grads = jax.jit(jax.value_and_grad(loss))(unflatten_dict(params, sep="/"))
    return float(value), flatten_dict(jax.device_get(grads), sep="/")


def assert_equal(ours, theirs):
    (loss, grads), (want, theirs) = ours, theirs
    assert loss == pytest.approx(want, rel=2e-6)
    gradients.assert_near(grads, theirs, tol=1e-4)


@pytest.mark.parametrize("name", mostly_long(masked_torch.CASES, ["mae_vit"]))
def test_loss_and_gradients_are_those_of_another_implementation(name):
    goldens, shapes = np.load(masked_torch.GOLDENS), parameter_shapes(create(name))
    grads = gradients.divide(goldens[f"{name}:grads"], shapes)
    assert_equal(loss_and_gradients(name), (float(goldens[f"{name}:loss"]), grads))


@pytest.mark.parametrize("name", masked_torch.CASES)
def test_the_goldens_are_what_that_implementation_gives(name):
    pytest.importorskip("torch")
    theirs = masked_torch.loss_and_gradients(name, parameter_shapes(create(name)))
    assert_equal(loss_and_gradients(name), theirs)


def test_masks_hide_as_many_of_each_image_and_every_patch_as_often(key):
    masks = draw_masks(key, 4000, grid=(3, 5), hidden=6)
    np.testing.assert_array_equal(masks.sum((1, 2)), 6)
    share = np.asarray(masks).mean(0)  # of 4000 draws: a deviation is 0.008
    assert abs(share - 6 / 15).max() < 0.04
    both = np.asarray(masks[:, 0, 0] & masks[:, 2, 4]).mean()
    assert both == pytest.approx(6 / 15 * 5 / 14, abs=0.03)
    assert len({mask.tobytes() for mask in np.asarray(masks[:50])}) > 45


def test_patches_come_apart_and_together(key):
    images = jax.random.normal(key, (2, 6, 8, 3))
    patches = cut_patches(images, (3, 2))
    np.testing.assert_array_equal(patches[1, 5], images[1, 3:6, 2:4].reshape(-1))
    np.testing.assert_array_equal(join_patches(patches, (3, 2), grid=(2, 4)), images)


def test_masks_are_enlarged_cell_by_cell():
    masks = jnp.array([[[True, False], [False, True]]])
    np.testing.assert_array_equal(
        enlarge(masks, (1, 3))[0].astype(int), [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    )

"""Distillation of features against an implementation of its own in another framework."""

import functools

import features_torch
import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.train.run.distil import widths_of
from vitswin_jax.train.task.features import (
    FEATURES,
    FeatureDistillation,
    FeaturesOnly,
    LabelsAndFeatures,
    resize_patches,
)


def make_task(name):
    """The student, and its task."""
    student, teacher, section = features_torch.CASES[name]
    student, teacher = (create_model(family, **fields) for family, fields in (student, teacher))
    images = (*features_torch.THEIRS.values(), *features_torch.OURS.values())
    widths = widths_of(FEATURES[section["features"]], student, teacher)
    features = FeatureDistillation(teacher, *images, **section, widths=widths)
    if section["alpha"] == 1:
        return student, FeaturesOnly(features)
    return student, LabelsAndFeatures(features=features)


@functools.cache
def ours(name):
    """The loss, and the gradients by the names of the parameters."""
    model, task = make_task(name)
    student, teacher, images, targets = features_torch.make_case(
        name, *features_torch.shapes_of(name)
    )
    params, teacher = (unflatten_dict(p, sep="/") for p in (student, teacher))
    part = {"image": images, "mask": np.ones(3, np.float32), "target": targets}
    part = jax.tree.map(jnp.asarray, part | {"weight": np.ones(3, np.float32)})

    def loss(params):
        outputs, _ = task.forward(jax.random.key(0), model, params, part)
        return task.losses(outputs, part, teacher)[0].mean()

    with jax.default_matmul_precision("highest"):
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), flatten_dict(jax.device_get(grads), sep="/")


def assert_equal(ours, theirs):
    (loss, grads), (want, their_grads) = ours, theirs
    assert loss == pytest.approx(want, rel=5e-6)
    gradients.assert_near(grads, their_grads, tol=2e-4)


@pytest.mark.parametrize("name", mostly_long(features_torch.CASES, ["both"]))
def test_loss_and_gradients_are_those_of_another_implementation(name):
    with np.load(features_torch.GOLDENS) as goldens:
        loss, flat = (goldens[f"{name}:{key}"] for key in ("loss", "grads"))
    shapes, _ = features_torch.shapes_of(name)
    assert_equal(ours(name), (float(loss), gradients.divide(flat, shapes)))


@pytest.mark.parametrize("name", features_torch.CASES)
def test_the_goldens_are_what_that_implementation_gives(name):
    pytest.importorskip("torch")
    assert_equal(
        ours(name), features_torch.loss_and_gradients(name, *features_torch.shapes_of(name))
    )


@pytest.mark.parametrize("name", mostly_long(features_torch.CASES, ["labels"]))
def test_the_projections_are_from_the_students_width_to_the_teachers(name):
    _, task = make_task(name)
    shapes, _ = features_torch.shapes_of(name)
    drawn = flatten_dict(jax.eval_shape(task.parameters, jax.random.key(0)), sep="/")
    want = {path: shape for path, shape in shapes.items() if path.startswith("distill/")}
    assert {path: leaf.shape for path, leaf in drawn.items()} == want


def test_a_map_of_one_value_stays_so_on_every_grid():
    maps = jnp.full((1, 3, 5, 2), 7.0)
    for grid in ((3, 5), (6, 4), (1, 1)):
        resized = resize_patches(maps, grid)
        assert resized.shape == (1, *grid, 2)
        np.testing.assert_allclose(resized, 7.0, rtol=1e-6)


def test_what_cannot_be_is_all_said_at_once():
    with pytest.raises(UserError) as error:
        images = (*features_torch.THEIRS.values(), *features_torch.OURS.values())
        FeatureDistillation(
            create_model("vit"), *images, features="tokens", loss="l2", beta=0.0, alpha=0.0
        )
    for part in ("features='tokens' must be", "loss='l2' must be", "beta=0.0", "alpha=0.0"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)

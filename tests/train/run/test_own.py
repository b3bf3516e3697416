"""What a Python user passes to a run is checked, and used as it is."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.run.own import Own, OwnTransform, own_loss, own_optimizer

PARAMS = {"block_0": {"kernel": jnp.ones((3, 4))}, "head": {"kernel": jnp.ones((4, 2))}}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


@pytest.mark.parametrize(
    ("function", "returns"),
    [
        (lambda logits, targets: logits - targets, r"float32 \(2, 5\)"),
        (lambda logits, targets: logits.argmax(-1), r"int32 \(2,\)"),
        (lambda logits, targets: (logits, targets), "tuple"),
    ],
)
def test_a_loss_is_one_number_an_example(function, returns):
    with pytest.raises(UserError, match=f"loss: returns {returns} for logits and targets"):
        own_loss(function, 5)


def test_a_loss_keeps_its_name_and_its_numbers():
    loss = own_loss(optax.softmax_cross_entropy, 5)
    assert loss.name == "softmax_cross_entropy"
    logits, targets = jnp.arange(10.0).reshape(2, 5), jnp.eye(2, 5)
    np.testing.assert_array_equal(
        loss(logits, targets), optax.softmax_cross_entropy(logits, targets)
    )


def test_an_optimizer_is_used_as_it_is_and_moves_only_what_trains():
    for groups, moves in ((Groups(), True), (Groups(freeze=("block_0/.*",)), False)):
        schedule, tx = own_optimizer(optax.adamw(0.1, weight_decay=1.0), lambda step: 9.0, groups)
        updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        plain = optax.adamw(0.1, weight_decay=1.0)
        theirs, _ = plain.update(GRADS, plain.init(PARAMS), PARAMS)
        np.testing.assert_allclose(updates["head"]["kernel"], theirs["head"]["kernel"])
        assert schedule is None and bool(updates["block_0"]["kernel"].any()) is moves


def test_a_function_is_given_the_runs_schedule():
    schedule, tx = own_optimizer(optax.sgd, lambda step: 0.5 + step, Groups())
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert schedule(2) == 2.5 and updates["head"]["kernel"][0, 0] == -0.5


@pytest.mark.parametrize("given", ["adam", 3, lambda schedule: schedule])
def test_what_is_no_optimizer_is_one_line(given):
    with pytest.raises(UserError, match=r"optimizer: is .*; it must be an optax.Gradient"):
        own_optimizer(given, lambda step: 0.1, Groups())


def test_an_augmentation_is_given_the_stored_image_and_its_result_is_resized():
    image = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    preprocess, given = Preprocess((4, 4), crop_mode="squash"), []

    def augment(pixels, rng, size):
        given.append(pixels)
        return np.full((size, size, 3), rng.integers(256), np.uint8)

    for size in (4, 9):
        transform = OwnTransform(functools.partial(augment, size=size), preprocess)
        result = transform(file.getvalue(), np.random.default_rng(3), name="x")
        want = np.random.default_rng(3).integers(256)
        assert result.shape == (4, 4, 3) and (result == want).all()
        np.testing.assert_array_equal(given[-1], image)


def test_metrics_are_one_number_each():
    logits, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    right = Own(metrics={"right": lambda x, y: (x.argmax(-1) == y).mean()})
    assert right.scores(logits, labels) == {"test/right": pytest.approx(2 / 3)}
    for value in (np.ones(3), "much", None):
        with pytest.raises(UserError, match=r"metrics\['f1'\]: returns .*; it must return one"):
            Own(metrics={"f1": lambda x, y, value=value: value}).scores(logits, labels)

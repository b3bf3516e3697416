"""The supervised task: what it refuses, and what each of its parts gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.train.task.losses import LOSSES, Loss
from vitswin_jax.train.task.masked import Masked
from vitswin_jax.train.task.mixing import Mixing
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.train.task.task import Task

SMOOTH = Mixing(label_smoothing=0.1)
BATCH = {"label": jnp.array([2, 0]), "mask": jnp.array([1.0, 0.0])}


@pytest.mark.parametrize("task", [Supervised(), Masked()])
def test_both_are_tasks_and_equal_to_their_copies(task):
    assert isinstance(task, Task)
    assert task == type(task)() and hash(task) == hash(type(task)())


def test_a_loss_that_reads_targets_as_bits_refuses_smoothed_labels_whatever_its_name():
    mine = Loss("mine", lambda logits, targets: (logits * targets).sum(-1), binary=True)
    for loss in (mine, LOSSES["bce"]):
        Supervised(loss=loss)
        with pytest.raises(UserError, match=f"loss.name='{loss.name}'.*label_smoothing=0.1"):
            Supervised(SMOOTH, loss)
    for name in ("softmax", "sigmoid"):
        Supervised(SMOOTH, LOSSES[name])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_row_is_binary_if_and_only_if_smoothing_the_target_leaves_its_loss_as_it_is(name):
    """Targets of 1 and 0.5 for the same classes: only a binary loss takes them for the same."""
    logits = jnp.array([[1.0, -2.0, 0.5]])
    whole, half = (LOSSES[name](logits, jnp.array([[t, t, 0.0]])) for t in (1.0, 0.5))
    assert bool(whole == half) == LOSSES[name].binary


def test_targets_are_smoothed_one_hot_rows_and_examples_weigh_by_their_class():
    model = create_model(
        "vit", num_classes=4, img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1
    )
    task = Supervised(SMOOTH, class_weights=(5.0, 1.0, 3.0, 1.0))
    got = task.targets(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), BATCH, model)
    want = np.full((2, 4), 0.025)
    want[[0, 1], [2, 0]] += 0.9
    np.testing.assert_allclose(got["target"], want, rtol=1e-6)
    np.testing.assert_array_equal(got["weight"], [3.0, 5.0])
    logits = jnp.array([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert float(task.metrics(logits, got)["accuracy"]) == 1.0  # the wrong row is padding

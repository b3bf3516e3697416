"""Self-distillation against an implementation of its own in another framework, and its parts."""

import dataclasses
import functools
import math

import dino_torch
import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import create_model
from vitswin_jax.train.run.sizes import at_size
from vitswin_jax.train.task.self_distilled import (
    Hiding,
    SelfDistilled,
    koleo_losses,
    sinkhorn,
    view_losses,
)
from vitswin_jax.weights.shapes import parameter_shapes


def create(name):
    family, fields, method, *_ = dino_torch.CASES[name]
    return create_pretraining(create_model(family, **fields), **method)


@dataclasses.dataclass(frozen=True, eq=False)
class Given(SelfDistilled):
    """The task with masks that are given."""

    hiding: Hiding | None = None

    def hide(self, key, views):
        assert views == len(self.hiding.active)
        return self.hiding


def make_task(name, hiding):
    model = create(name)
    *_, small, _ = dino_torch.CASES[name]
    local = at_size(model, (dino_torch.LOCAL,) * 2) if small else (None, None)
    return Given(model, *local, warmup_steps=dino_torch.WARMUP, hiding=hiding)


@functools.cache
def ours(name):
    """The loss, the gradients by the names of the parameters, and the centres."""
    shapes, step = parameter_shapes(create(name)), dino_torch.CASES[name][-1]
    (student, teacher), batch, hiding, centers = dino_torch.make_case(name, shapes)
    task = make_task(name, Hiding(*map(jnp.asarray, hiding)))
    student, teacher = (
        jax.tree.map(jnp.asarray, unflatten_dict(p, sep="/")) for p in (student, teacher)
    )
    batch = jax.tree.map(jnp.asarray, batch)
    begun = task.begin()
    kept = None if begun is None else {key: jnp.asarray(centers[key]) for key in begun}

    def loss(params):
        guide = task.guide(None, teacher, kept=kept, step=jnp.int32(step))
        outputs, _ = task.forward(jax.random.key(0), task.model, params, batch)
        losses, rows = task.losses(outputs, batch, guide)
        return (losses * batch["mask"]).sum() / batch["mask"].sum(), rows

    with jax.default_matmul_precision("highest"):
        (value, rows), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(student)
    after = task.keep(kept, rows, batch)
    return float(value), flatten_dict(jax.device_get(grads), sep="/"), after


def assert_equal(ours, theirs):
    (loss, grads, centers), (want, their_grads, their_centers) = ours, theirs
    assert loss == pytest.approx(want, rel=5e-6)
    gradients.assert_near(grads, their_grads, tol=2e-4)
    for key, center in (centers or {}).items():
        np.testing.assert_allclose(center, their_centers[key], atol=1e-6)


@pytest.mark.parametrize("name", mostly_long(dino_torch.CASES, ["ibot"]))
def test_loss_gradients_and_centers_are_those_of_another_implementation(name):
    goldens, shapes = np.load(dino_torch.GOLDENS), parameter_shapes(create(name))
    grads = gradients.divide(goldens[f"{name}:grads"], shapes)
    centers = {
        key: goldens[f"{name}:{key}"]
        for key in ("center", "patch_center")
        if f"{name}:{key}" in goldens
    }
    assert_equal(ours(name), (float(goldens[f"{name}:loss"]), grads, centers))


@pytest.mark.parametrize("name", dino_torch.CASES)
def test_the_goldens_are_what_that_implementation_gives(name):
    pytest.importorskip("torch")
    assert_equal(ours(name), dino_torch.loss_and_gradients(name, parameter_shapes(create(name))))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
def test_sinkhorn_shares_the_outputs_out_among_the_rows_that_count(key, weights):
    weights = jnp.array(weights)
    logits = jax.random.uniform(key, (4, 3), minval=-1, maxval=1)
    shared = sinkhorn(logits, 1.0, weights)
    np.testing.assert_allclose(shared.sum(-1), weights, rtol=1e-5)
    np.testing.assert_allclose(shared.sum(0), weights.sum() / 3, rtol=0.02)
    chosen = sinkhorn(logits[weights > 0], 1.0, jnp.ones(int(weights.sum())))
    np.testing.assert_allclose(shared[weights > 0], chosen, rtol=1e-5)


def test_no_view_is_its_own_target():
    targets = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    log_probs = jnp.log(jnp.array([[[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]]))
    want = -np.log([0.2, 0.9, 0.5, 0.1]).mean()  # (0, 1), (0, 2), (1, 0), (1, 2)
    np.testing.assert_allclose(view_losses(targets, log_probs), [want], rtol=1e-6)


def test_koleo_spreads_the_images_that_are_there():
    features = jnp.array([[[1.0, 0.0]], [[1.0, 0.1]], [[-1.0, 0.0]]])
    first, second, third = koleo_losses(features, jnp.ones(3)).tolist()
    assert first == pytest.approx(second, rel=1e-5) and third < 0 < first
    without = koleo_losses(features, jnp.array([1.0, 0.0, 1.0])).tolist()
    assert without[0] == pytest.approx(-math.log(2), abs=1e-5)
    alone = koleo_losses(features[:1], jnp.ones(1))
    np.testing.assert_array_equal(alone, [0.0])


def test_the_temperature_rises_and_the_last_layer_waits():
    task = SelfDistilled(create("dino"), warmup_steps=4, frozen_steps=2)
    assert [float(task.temperature(jnp.int32(n))) for n in (0, 2, 4, 9)] == pytest.approx(
        [0.05, 0.075, 0.1, 0.1]
    )
    updates = {"projection": {"prototypes": {"kernel": jnp.ones(2)}, "hidden_0": jnp.ones(1)}}
    for step, moved in ((0, 0.0), (1, 0.0), (2, 1.0)):
        got = task.train_only(updates, jnp.int32(step))["projection"]
        np.testing.assert_array_equal(got["prototypes"]["kernel"], [moved] * 2)
        np.testing.assert_array_equal(got["hidden_0"], [1.0])


def test_as_many_places_are_hidden_of_each_view_and_of_some_views_none(key):
    task = SelfDistilled(create("ibot"))
    hiding = task.hide(key, 400)
    shown = np.asarray(hiding.cells).reshape(400, -1)
    active = np.asarray(hiding.active) > 0
    assert 0.4 < active.mean() < 0.6
    np.testing.assert_array_equal(shown.sum(1), np.where(active, 7, 0))  # 0.4 of 16, rounded up
    for row, places in zip(shown[active], np.asarray(hiding.places)[active], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), places)


def test_entropies_show_a_collapse():
    task, mask = SelfDistilled(create("dino")), jnp.array([1.0, 1.0, 0.0])
    same = jnp.tile(jnp.eye(6)[:1], (3, 1))
    uniform = jnp.full((3, 6), 1 / 6)
    for targets, entropy, spread in ((same, 0.0, 0.0), (uniform, math.log(6), math.log(6))):
        rows = {"target": targets, "entropy": jnp.full(3, entropy)}
        got = task.metrics(rows, {"mask": mask})
        assert float(got["target_entropy"]) == pytest.approx(entropy)
        assert float(got["spread_entropy"]) == pytest.approx(spread, abs=1e-6)

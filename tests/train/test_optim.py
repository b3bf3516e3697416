"""Schedules at points known from their formulas; decay masks on whole models; clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vitswin_jax import create_model
from vitswin_jax.train.optim import decay_mask, make_schedule, make_tx
from vitswin_jax.types import UserError


def test_warmup_and_cosine_are_the_originals_formula():
    """vit_jax: base * min(1, t / warmup) * (1 + cos(π progress)) / 2, from the warmup's end."""
    schedule = make_schedule(schedule="cosine", peak_lr=0.3, total_steps=10, warmup_steps=3)
    for t in range(10):
        progress = min(1.0, max(0.0, (t - 3) / (10 - 3)))
        want = 0.3 * min(1.0, t / 3) * (1 + math.cos(math.pi * progress)) / 2
        assert float(schedule(t)) == pytest.approx(want, abs=1e-7)


def test_swin_warms_up_from_and_decays_to_rates_above_zero():
    """timm's CosineLRScheduler with a warmup prefix, as Swin's recipe has it."""
    schedule = make_schedule(
        schedule="cosine",
        peak_lr=1e-3,
        total_steps=300,
        warmup_steps=20,
        warmup_lr=5e-7,
        end_lr=5e-6,
    )
    for t in range(0, 300, 7):
        if t < 20:
            want = 5e-7 + t * (1e-3 - 5e-7) / 20
        else:
            want = 5e-6 + 0.5 * (1e-3 - 5e-6) * (1 + math.cos(math.pi * (t - 20) / 280))
        assert float(schedule(t)) == pytest.approx(want, rel=1e-5)


def test_linear_and_constant():
    linear = make_schedule(schedule="linear", peak_lr=1.0, total_steps=10, end_lr=0.5)
    np.testing.assert_allclose([linear(0), linear(5), linear(10)], [1.0, 0.75, 0.5])
    constant = make_schedule(schedule="constant", peak_lr=0.1, total_steps=10, warmup_steps=2)
    np.testing.assert_allclose([constant(0), constant(1), constant(9)], [0, 0.05, 0.1], rtol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_kernels_alone_decay(name):
    model = create_model(name)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    for path, decayed in flatten_dict(decay_mask(params), sep="/").items():
        assert decayed == path.endswith("/kernel"), path


def test_a_parameter_that_no_rule_covers_raises():
    with pytest.raises(ValueError, match="no rule of DECAY_RULES covers head/kernle"):
        decay_mask({"head": {"kernle": jnp.zeros(2), "bias": jnp.zeros(2)}})


def test_adamw_is_the_paper_formula():
    """Two steps in plain numpy; the decay is decoupled and scaled by the rate."""
    lr, decay, b1, b2, eps = 0.1, 0.5, 0.9, 0.999, 1e-8
    tx = make_tx(lambda step: lr, name="adamw", weight_decay=decay)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([1.0])}
    state = tx.init(params)
    want = {key: np.asarray(value, np.float64) for key, value in params.items()}
    m, v = dict.fromkeys(want, 0.0), dict.fromkeys(want, 0.0)
    for t, scale in ((1, 1.0), (2, -3.0)):
        grads = {"kernel": jnp.array([0.3, 0.1]) * scale, "bias": jnp.array([0.2]) * scale}
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for key, value in want.items():
            g = np.asarray(grads[key], np.float64)
            m[key], v[key] = b1 * m[key] + (1 - b1) * g, b2 * v[key] + (1 - b2) * g**2
            step = (m[key] / (1 - b1**t)) / (np.sqrt(v[key] / (1 - b2**t)) + eps)
            want[key] = value - lr * (step + decay * value * (key == "kernel"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, want)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_couples_its_decay_as_pytorch_does(nesterov):
    tx = make_tx(lambda step: 0.1, name="sgd", weight_decay=0.5, momentum=0.9, nesterov=nesterov)
    params, want, velocity = {"kernel": jnp.array([2.0])}, 2.0, 0.0
    state = tx.init(params)
    for g in (0.3, -0.2, 0.5):
        updates, state = tx.update({"kernel": jnp.array([g])}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        decayed = g + 0.5 * want
        velocity = 0.9 * velocity + decayed
        want -= 0.1 * (decayed + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(params["kernel"], want, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    tx = make_tx(lambda step: 1.0, name="sgd", momentum=0.0, max_grad_norm=1.0)
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"kernel": jnp.array([4.0])}}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["kernel"], [-0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make_tx(lambda s: 0.1, name="adamv"),
            r"optim.name='adamv' .*did you mean 'adamw'",
        ),
        (
            lambda: make_schedule(schedule="cosin", peak_lr=1.0, total_steps=9),
            r"optim.schedule='cosin' .*did you mean 'cosine'",
        ),
        (
            lambda: make_schedule(schedule="cosine", peak_lr=1.0, total_steps=9, warmup_steps=9),
            "the warmup of 9 steps must be shorter than the run of 9",
        ),
    ],
)
def test_what_is_unknown_or_too_long_is_said(call, message):
    with pytest.raises(UserError, match=message):
        call()

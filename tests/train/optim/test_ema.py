"""The average against its closed form, and through the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.optim.ema import Ema, Momentum


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_its_closed_form(warmup):
    """Σ over steps of what each gave, times the decays of all later steps."""
    ema = Ema(0.9, warmup)
    values = np.random.default_rng(0).normal(size=(12, 3))
    average = {"kernel": jnp.float32(values[0])}
    for step, value in enumerate(values[1:]):
        average = ema.update(average, {"kernel": jnp.float32(value)}, jnp.int32(step))
    decays = [min(0.9, (1 + n) / (10 + n)) if warmup else 0.9 for n in range(11)]
    shares = np.array([1.0, *(1 - d for d in decays)])
    kept = np.array([np.prod(decays[i:]) for i in range(12)])
    np.testing.assert_allclose(average["kernel"], (shares * kept) @ values, rtol=1e-5)


def test_what_does_not_move_stays_bit_for_bit():
    params = {"kernel": jax.random.normal(jax.random.key(0), (1000,))}
    average = Ema(0.99996).update(params, params, jnp.int32(0))
    np.testing.assert_array_equal(average["kernel"], params["kernel"])


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_said(decay):
    with pytest.raises(UserError, match=r"ema.decay=.* must be in \[0, 1\)"):
        Ema(decay)


def test_the_momentum_of_a_teacher_rises_to_1_as_a_cosine():
    """As DINO's cosine_scheduler(0.996, 1, ...) has it."""
    momentum = Momentum(0.996, total_steps=8)
    steps = np.arange(9)
    want = 1 + 0.5 * (0.996 - 1) * (1 + np.cos(np.pi * steps / 8))
    got = [1 - float(momentum.share(jnp.int32(step))) for step in steps]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert float(momentum.share(jnp.int32(9))) == pytest.approx(0, abs=1e-9)

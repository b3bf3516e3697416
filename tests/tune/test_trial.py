"""A trial: the rates of its steps, and the learning rate that its losses point to."""

import numpy as np
import pytest

from vitswin_jax.train.optim.schedules import make_schedule
from vitswin_jax.train.run.inputs import open_data
from vitswin_jax.tune import trial


def measured(losses, *, whole=True):
    rates = np.geomspace(trial.LOWEST, trial.HIGHEST, trial.STEPS)[: len(losses)].tolist()
    return trial.Trial(0.1, 5.0, rates, losses, whole)


def valley(best, *, steps=trial.STEPS):
    """Losses that fall until a rate, and rise after it."""
    rates = np.geomspace(trial.LOWEST, trial.HIGHEST, trial.STEPS)[:steps]
    return [2.3 - 0.1 * np.log(rate / rates[0]) if rate < best else 2.3 + rate for rate in rates]


@pytest.mark.parametrize("best", [1e-3, 4e-3, 1e-2])
def test_the_rate_lies_below_that_of_the_least_loss(best):
    noise = np.random.default_rng(0).normal(scale=0.02, size=trial.STEPS)
    found = measured((np.array(valley(best)) + noise).tolist()).rate
    assert best / 5 < found < best / 2


def test_no_rate_is_found_without_a_valley():
    assert measured(np.linspace(2.3, 2.6, trial.STEPS).tolist()).rate is None
    assert measured(valley(1e-3, steps=20), whole=False).rate is None
    assert measured([]).rate is None


def test_smoothing_begins_at_the_first_loss():
    np.testing.assert_allclose(trial.smooth([3.0, 3.0, 3.0]), 3.0)
    np.testing.assert_allclose(trial.smooth([1.0, 2.0]), [1.0, (0.8 * 0.2 + 2 * 0.2) / 0.36])


def test_a_trial_rises_by_equal_factors(make_config):
    config = make_config()
    optim = trial.rising(config).optim
    schedule = make_schedule(
        schedule=optim.schedule,
        peak_lr=optim.peak_lr,
        total_steps=optim.total_steps,
        milestone_steps=optim.milestone_steps,
        gamma=optim.gamma,
    )
    rates = [float(schedule(step)) for step in range(trial.STEPS)]
    np.testing.assert_allclose(
        rates, np.geomspace(trial.LOWEST, trial.HIGHEST, trial.STEPS), rtol=1e-3
    )
    assert config.optim.schedule == "cosine"  # the config itself stays


@pytest.mark.long
def test_a_trial_measures_the_runs_own_steps(make_config):
    config = make_config()
    data = open_data(dict(config.data), seed=config.seed)
    found = trial.try_out(config, seconds=0.01, data=data)
    assert found.seconds_per_step > 0 and found.compile_seconds > found.seconds_per_step
    assert not found.whole and found.rate is None
    assert len(found.losses) == len(found.rates) == 2  # the time is over after the second
    assert 1.5 < found.losses[0] < 3.5  # of ten classes

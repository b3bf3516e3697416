"""Every schedule against the original's own numbers, and at points known from their formulas."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.optim.schedules import make_schedule

with np.load(Path(__file__).parents[2] / "goldens" / "train" / "schedules.npz") as arrays:
    ORIGINALS = {
        name.removesuffix("/keys"): (json.loads(str(arrays[name])), arrays[f"{name[:-4]}rates"])
        for name in arrays
        if name.endswith("/keys")
    }


@pytest.mark.parametrize("name", sorted(ORIGINALS))
def test_every_step_has_the_originals_rate(name):
    """timm's and Microsoft's schedulers and big_vision's, asked at each of 40 steps."""
    keys, rates = ORIGINALS[name]
    schedule = make_schedule(**keys)
    got = [float(schedule(step)) for step in range(len(rates))]
    np.testing.assert_allclose(got, rates, rtol=2e-6, atol=1e-9)
    assert len(set(rates)) >= 4  # no golden is flat


def test_warmup_and_cosine_are_vit_jaxs_formula():
    """vit_jax: base * min(1, t / warmup) * (1 + cos(π progress)) / 2, from the warmup's end."""
    schedule = make_schedule(schedule="cosine", peak_lr=0.3, total_steps=10, warmup_steps=3)
    for t in range(10):
        progress = min(1.0, max(0.0, (t - 3) / (10 - 3)))
        want = 0.3 * min(1.0, t / 3) * (1 + math.cos(math.pi * progress)) / 2
        assert float(schedule(t)) == pytest.approx(want, abs=1e-7)


def test_linear_and_constant():
    linear = make_schedule(schedule="linear", peak_lr=1.0, total_steps=10, end_lr=0.5)
    np.testing.assert_allclose([linear(0), linear(5), linear(10)], [1.0, 0.75, 0.5])
    constant = make_schedule(schedule="constant", peak_lr=0.1, total_steps=10, warmup_steps=2)
    np.testing.assert_allclose([constant(0), constant(1), constant(9)], [0, 0.05, 0.1], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "rsqrt", "cosine", "multistep"])
def test_a_cooldown_draws_every_schedule_to_its_end(schedule):
    """A straight line from the schedule's own rate, whose weight falls from 1 to 0."""
    keys = {"schedule": schedule, "peak_lr": 1.0, "total_steps": 20}
    if schedule == "multistep":
        keys |= {"milestone_steps": (5,)}
    end = {"end_lr": 0.1}
    plain = make_schedule(**keys, **(end if schedule == "cosine" else {}))
    cooled = make_schedule(**keys, **end, cooldown_steps=8)
    for t in range(21):
        weight = min(1.0, (20 - t) / 8)
        want = 0.1 + (float(plain(t)) - 0.1) * weight
        assert float(cooled(t)) == pytest.approx(want, rel=1e-5)


def test_the_tutorials_rate_changes_once_an_epoch():
    """Its LambdaLR: ((1 + cos(e π / epochs)) / 2) (1 - lrf) + lrf, of epochs of 7 steps and 1/3."""
    per_epoch, epochs, lrf = 22 / 3, 6, 0.01
    schedule = make_schedule(
        schedule="cosine",
        schedule_unit="epoch",
        peak_lr=1e-3,
        end_lr=1e-3 * lrf,
        total_steps=44,
        steps_per_epoch=per_epoch,
    )
    for step in range(44):
        epoch = 3 * step // 22
        want = ((1 + math.cos(epoch * math.pi / epochs)) / 2) * (1 - lrf) + lrf
        assert float(schedule(step)) == pytest.approx(1e-3 * want, rel=1e-5), step


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schedule": "cosin"}, r"optim.schedule='cosin' .*did you mean 'cosine'"),
        ({"schedule_unit": "epochs"}, "optim.schedule_unit='epochs' must be one of step, epoch"),
        ({"warmup_steps": 9}, "the warmup of 9 steps must be shorter than the run of 9"),
        ({"warmup_steps": 4, "cooldown_steps": 6}, "the warmup of 4 and the cooldown of 6 steps"),
        ({"gamma": 0.1}, r"schedule='cosine' does not read optim.gamma=0.1; it has no such keys"),
        (
            {"schedule": "rsqrt", "milestone_steps": (3,)},
            r"does not read optim.milestone_steps=\(3,\); of such keys it reads timescale_steps",
        ),
        ({"schedule": "constant", "end_lr": 0.1}, "end_lr=0.1 needs a cooldown"),
        ({"peak_lr": -1.0}, "peak_lr=-1.0 must be 0 or more"),
        ({"warmup_lr": math.nan}, "warmup_lr=nan must be 0 or more"),
        ({"schedule": "multistep"}, "'multistep' needs milestones"),
        ({"schedule": "multistep", "milestone_steps": (5, 3)}, r"\(5, 3\) must rise"),
        (
            {"schedule": "multistep", "milestone_steps": (2,), "warmup_steps": 3},
            "from the warmup's end at 3",
        ),
        ({"schedule": "rsqrt", "timescale_steps": 0}, "the timescale of 0 steps must be above 0"),
        ({"schedule_unit": "epoch"}, "needs steps_per_epoch"),
        (
            {
                "schedule_unit": "epoch",
                "steps_per_epoch": 3.0,
                "warmup_steps": 5,
                "total_steps": 30,
            },
            "counts whole epochs, but warmup is 1.667 epochs",
        ),
    ],
)
def test_what_does_not_fit_is_said(keys, message):
    with pytest.raises(UserError, match=message) as error:
        make_schedule(**{"schedule": "cosine", "peak_lr": 1.0, "total_steps": 9} | keys)
    assert "\n" not in str(error.value)

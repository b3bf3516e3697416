"""Counts in steps, epochs or examples, each said once, become the same steps."""

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.run.plan import make_plan

RUN = {"log_steps": 5, "eval_epochs": 1.0, "checkpoint_epochs": 2.0, "keep_checkpoints": 2}
RUN |= {"keep_best": 0, "final": "last"}


def plan(optim, run=None, *, num_examples=1000, batch_size=32):
    return make_plan(
        dict(optim), RUN | (run or {}), num_examples=num_examples, batch_size=batch_size
    )


@pytest.mark.parametrize(
    "counts",
    [
        {"epochs": 3.2, "warmup_epochs": 0.32, "cooldown_epochs": 0.64},
        {"total_steps": 100, "warmup_steps": 10, "cooldown_steps": 20},
        {"examples": 3200, "warmup_examples": 320, "cooldown_examples": 640},
        {"examples": 3200, "epochs": 0.0, "total_steps": None, "warmup_steps": 10}
        | {"warmup_epochs": 0.0, "cooldown_epochs": 0.64},
    ],
)
def test_one_length_in_three_units(counts):
    got = plan(counts)
    assert (got.total_steps, got.warmup_steps, got.cooldown_steps) == (100, 10, 20)
    assert (got.log_every, got.eval_every, got.checkpoint_every) == (5, 31, 62)


def test_cadences_milestones_and_timescale_have_the_units_too():
    optim = {"epochs": 10.0, "milestone_epochs": (2.0, 8.0), "timescale_examples": 640}
    run = {"log_steps": 0, "log_examples": 100, "eval_epochs": 0.0, "eval_steps": 7}
    got = plan(optim, run)
    assert (got.log_every, got.eval_every) == (3, 7)
    assert got.schedule_counts() == {
        "total_steps": 312,  # 312.5, to the even
        "warmup_steps": 0,
        "cooldown_steps": 0,
        "timescale_steps": 20,
        "milestone_steps": (62, 250),
        "steps_per_epoch": 31.25,
    }


@pytest.mark.parametrize(
    ("changes", "saved"),
    [
        ({}, [6, 12, 18, 20]),
        ({"keep_best": 1}, [4, 6, 8, 12, 16, 18, 20]),
        ({"keep_every_examples": 320}, [6, 10, 12, 18, 20]),
        ({"keep_every_epochs": 0.25}, [6, 8, 12, 16, 18, 20]),
    ],
)
def test_what_may_be_kept_is_saved(changes, saved):
    run = {"eval_epochs": 0.0, "eval_steps": 4, "checkpoint_epochs": 0.0, "checkpoint_steps": 6}
    got = plan({"total_steps": 20}, run | changes)
    assert [step for step in range(1, 21) if got.saves_at(step)] == saved


def test_what_is_not_a_count_stays_and_is_read_by_others():
    optim = {"epochs": 1.0, "peak_lr": 0.1}
    make_plan(optim, dict(RUN), num_examples=64, batch_size=32)
    assert optim == {"peak_lr": 0.1}


@pytest.mark.parametrize(
    ("optim", "run", "message"),
    [
        (
            {"epochs": 5.0, "total_steps": 7},
            {},
            "^optim.total_steps=7 and optim.epochs=5.0 say the same twice; set all but one to 0.$",
        ),
        (
            {"epochs": 0.0},
            {},
            "optim.epochs=0.0 must be above 0, or another of optim.total_steps, optim.epochs",
        ),
        ({"epochs": 1.0, "warmup_steps": -1}, {}, "optim.warmup_steps=-1 must be 0 or more"),
        ({"epochs": -1.0}, {}, "optim.epochs=-1.0 must be above 0"),
        (
            {"epochs": 1.0},
            {"log_steps": 0, "keep_checkpoints": 0},
            "run.log_steps=0 must be above 0, .*; run.keep_checkpoints=0 must be above 0",
        ),
        ({"epochs": 1.0}, {"keep_best": -1}, "^run.keep_best=-1 must be 0 or more.$"),
        (
            {"epochs": 1.0},
            {"final": "bets"},
            r"^run.final='bets' must be one of last, best \(did you mean 'best'\?\)\.$",
        ),
        ({"epochs": 1.0}, {"final": "best"}, "^run.final='best' needs run.keep_best above 0.$"),
    ],
)
def test_what_is_said_twice_or_not_at_all_is_one_line(optim, run, message):
    with pytest.raises(UserError, match=message) as error:
        plan(optim, run)
    assert "\n" not in str(error.value)


def test_a_cadence_that_nothing_reads_raises():
    with pytest.raises(ValueError, match=r"nothing reads run\.evals"):
        plan({"epochs": 1.0}, {"evals": 3})

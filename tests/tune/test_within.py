"""Keeping a time: the pace of a run's rows, and when its end is planned anew."""

import json
from pathlib import Path

import pytest

from vitswin_jax.report.results import Result
from vitswin_jax.tune import within
from vitswin_jax.tune.choose import Choice, Task
from vitswin_jax.tune.clock import Clock, Costs
from vitswin_jax.tune.pace import read_pace
from vitswin_jax.tune.within import Watch, train_within

OUTCOME = Result("vit", 0.5, 10, Path("model.safetensors"), Path("report.html"))
EACH_20 = {
    "run.eval_epochs": 0.0, "run.checkpoint_epochs": 0.0,
    "run.eval_steps": 20, "run.checkpoint_steps": 20,
}  # fmt: skip
EXPECTED = Costs(step=0.1, evaluation=2.0, start=10.0)


def write_rows(path, *, step, evaluation, compiling=8.0, upto=100, start=0, seconds=0.0):
    """The rows of a run: one each 10 steps, tested each 20 from step `start` on."""
    rows = [{"step": start, "time/seconds": seconds}] if start else []
    for number in range(start + 10, upto + 1, 10):
        others = evaluation if number % 20 == 10 and number > start + 10 else 0.0
        training = 10 * step + (compiling if number == start + 10 else 0.0)
        spent = training + others
        seconds += spent
        rows.append({
            "step": number, "time/seconds": seconds, "time/input": 0.1 * training / spent,
            "time/device": 0.9 * training / spent, "time/evaluate": 0.6 * others / spent,
            "time/save": 0.4 * others / spent,
        })  # fmt: skip
        if number % 20 == 0:
            rows.append({"step": number, "test/loss": 1.0, "test/accuracy": 0.5})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_pace_is_that_of_the_rows(tmp_path):
    write_rows(tmp_path / "m", step=0.5, evaluation=3.0)
    pace = read_pace(tmp_path / "m", EXPECTED, start=0, prepared=2.0)
    assert pace.step == 100
    assert pace.costs.step == pytest.approx(0.5)
    assert pace.costs.evaluation == pytest.approx(3.0)
    assert pace.costs.start == pytest.approx(2.0 + 8.0)
    assert pace.seconds == pytest.approx(8 + 100 * 0.5 + 4 * 3.0)
    assert pace.seconds_to(200, every=20) == pytest.approx(50 + 5 * 3.0)


def test_the_pace_of_a_resumed_run_is_that_of_its_own_rows(tmp_path):
    write_rows(tmp_path / "m", step=0.25, evaluation=1.0, start=40, seconds=1000.0)
    pace = read_pace(tmp_path / "m", EXPECTED, start=40, prepared=0.0)
    assert pace.costs.step == pytest.approx(0.25)
    assert pace.seconds == pytest.approx(8 + 60 * 0.25 + 2 * 1.0)


def test_too_few_rows_tell_no_pace(tmp_path):
    assert read_pace(tmp_path / "m", EXPECTED, start=0, prepared=0.0) is None
    write_rows(tmp_path / "m", step=0.5, evaluation=3.0, upto=50)
    assert read_pace(tmp_path / "m", EXPECTED, start=0, prepared=0.0) is None


class Hand:
    """A clock's hand that a test moves."""

    at = 0.0

    def __call__(self):
        return self.at


def watch_of(tmp_path, hand, *, total, seconds=300.0, judged=within._ROUNDS[0]):
    clock = Clock(seconds, 0.0, now=hand)
    return Watch(tmp_path, clock, EXPECTED, total=total, every=20, judged=judged)


@pytest.mark.parametrize(
    ("total", "asked"),
    [(420, False), (520, True), (150, True)],
    ids=["in time", "too slow", "too fast"],
)
def test_a_run_that_misses_its_end_is_asked_to_stop(tmp_path, total, asked):
    """At 0.5 s a step and 3 s each 20 steps, 420 steps end after 298 s of 300."""
    hand = Hand()
    watch = watch_of(tmp_path, hand, total=total)
    hand.at = 20.0
    assert not watch.look()
    write_rows(tmp_path / "metrics.jsonl", step=0.5, evaluation=3.0)
    assert not watch.look()  # it is too early to judge
    hand.at = 122.0
    assert watch.look() == asked
    assert (watch.replan is not None) == asked


def test_the_second_part_of_a_run_is_only_shortened(tmp_path):
    hand = Hand()
    watches = [watch_of(tmp_path, hand, total=n, judged=within._ROUNDS[1]) for n in (150, 900)]
    hand.at = 20.0
    write_rows(tmp_path / "metrics.jsonl", step=0.5, evaluation=3.0)
    assert not any(watch.look() for watch in watches)
    hand.at = 190.0
    assert [watch.look() for watch in watches] == [False, True]


def test_it_is_planned_anew_once_and_then_ends_in_time(tmp_path):
    hand = Hand()
    watch = watch_of(tmp_path, hand, total=2000, judged=None)
    hand.at = 1.0
    write_rows(tmp_path / "metrics.jsonl", step=0.5, evaluation=3.0)
    assert not watch.look()
    hand.at = 200.0
    assert not watch.look()
    hand.at = 0.97 * 300 - 1.0  # less than an evaluation is left
    assert watch.look()
    assert watch.replan is None


@pytest.fixture
def watches(monkeypatch):
    """The watches of the runs in a test, in their order."""
    watches = []

    class Watched(Watch):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            watches.append(self)

    monkeypatch.setattr(within, "Watch", Watched)
    return watches


@pytest.fixture
def make(make_config):
    """Returns a config with keys, that is evaluated and saved every 20 steps."""

    def make(keys):
        config = make_config()
        config.update_from_flattened_dict(EACH_20 | keys)
        return config

    return make


def test_a_run_that_is_whole_too_early_is_extended(tmp_path, make, watches, monkeypatch):
    """100 steps are done after 90 s of 300: the trainer stands aside, as below."""
    hand, lengths = Hand(), []

    def train(config, workdir, *, command):
        lengths.append(round(config.optim.epochs * 1000 / config.data.batch_size))
        if len(lengths) == 1:
            hand.at = 20.0
            write_rows(workdir / "metrics.jsonl", step=0.5, evaluation=3.0)
            watches[0].look()
            hand.at = 90.0
        else:
            hand.at = 285.0
        return OUTCOME

    monkeypatch.setattr(within, "train_and_evaluate", train)

    config = make({"optim.epochs": 100 * make({}).data.batch_size / 1000})
    choice = Choice({}, config, EXPECTED, 1000, ["why"])
    train_within(Task(make, ()), choice, tmp_path, Clock(300.0, 0.0, now=hand), command="x")
    first, second = lengths
    left = 0.97 * 300 - 90
    assert first == 100
    assert 100 + 0.7 * (left - 30) / 0.5 < second < 100 + left / 0.5


def test_a_slow_run_resumes_with_fewer_steps(tmp_path, make, watches, monkeypatch):
    """The trainer stands aside: it writes rows as a run does that is five times slower."""
    hand, lengths = Hand(), []

    def train(config, workdir, *, command):
        assert (workdir / "recipe.py").exists()
        lengths.append(round(config.optim.epochs * 1000 / config.data.batch_size))
        write_rows(workdir / "metrics.jsonl", step=0.5, evaluation=3.0)
        if len(lengths) == 1:
            hand.at = 122.0
            watches[-1]._begin = 20.0
            assert watches[-1].look()
        return OUTCOME

    monkeypatch.setattr(within, "train_and_evaluate", train)

    batch = make({}).data.batch_size
    config = make({"optim.epochs": 2000 * batch / 1000})
    clock = Clock(300.0, 0.0, now=hand)
    choice = Choice({}, config, EXPECTED, 1000, ["why"])
    assert train_within(Task(make, ()), choice, tmp_path, clock, command="x") is OUTCOME
    first, second = lengths
    assert first == 2000
    left = 0.97 * 300 - 122
    assert 100 + 0.8 * (left - 30) / 0.5 < second < 100 + left / 0.5

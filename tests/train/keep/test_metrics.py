"""Metrics on their way to the loggers: late but in order, each step once."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.metrics import Recorder, StepLog
from vitswin_jax.train.keep.timing import KINDS
from vitswin_jax.train.run.plan import Plan, due


def test_a_window_is_fetched_when_the_next_one_closes():
    log = StepLog()
    for step, value in ((1, 1.0), (2, 3.0)):
        log.add(step, {"loss": jnp.float32(value)})
    assert log.turn() is None
    log.add(3, {"loss": jnp.float32(5.0)})
    assert log.turn() == (2, {"loss": 2.0})
    log.add(4, {"loss": jnp.float32(7.0)})
    row, window = log.settle()
    assert row == (3, {"loss": 5.0})
    assert log.settle() == (None, ((4, {"loss": 7.0}),))
    resumed = StepLog(json.loads(json.dumps(window)))
    for each in (log, resumed):
        each.add(5, {"loss": jnp.float32(8.0)})
        assert each.turn() is None
        assert each.settle() == ((5, {"loss": 7.5}), ())


def test_a_value_that_is_not_finite_is_named_with_its_step():
    log = StepLog()
    log.add(6, {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(1.0)})
    log.add(7, {"loss": jnp.float32("nan"), "grad_norm": jnp.float32("inf")})
    with pytest.raises(UserError, match="grad_norm is inf, loss is nan at step 7; the run stops"):
        log.settle()


def recorder_of(workdir, **more):
    plan = Plan(
        total_steps=5,
        warmup_steps=0,
        log_every=2,
        eval_every=5,
        checkpoint_every=5,
        keep_checkpoints=1,
        batch_size=4,
        steps_per_epoch=2.5,
    )
    return Recorder(workdir, plan, lambda step: 0.1 * step, start_step=0, **more)


def record_five_steps(workdir, **more):
    recorder = recorder_of(workdir, **more)
    for step in recorder.inputs(range(1, 6)):
        recorder.record(step, {"loss": jnp.float32(step)})
    recorder.settle()
    recorder.close()


def test_writing_an_evaluations_weights_and_page_is_saving(tmp_path):
    recorder = recorder_of(tmp_path)
    for step in recorder.inputs(range(1, 3)):
        if step == 2:
            recorder.write(1, {})
            time.sleep(0.2)  # for the weights and the page
            recorder.written()
            recorder.settle()
        recorder.record(step, {"loss": jnp.float32(step)})
    recorder.settle()
    recorder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (row,) = (json.loads(line) for line in lines if "time/save" in line)
    assert row["time/save"] * row["time/seconds"] >= 0.19


def test_the_recorder_writes_each_step_once_with_its_own_rate(tmp_path):
    record_five_steps(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.3, 0.4])  # of the step's update
    assert [row["epoch"] for row in rows] == pytest.approx([0.8, 1.6, 2.0])
    assert all(row["images_per_second"] > 0 for row in rows)
    assert all(sum(row[f"time/{kind}"] for kind in KINDS) == pytest.approx(1) for row in rows)


def test_hosts_that_are_not_first_write_and_show_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    record_five_steps(tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_more_loggers_are_given_every_row_and_closed(tmp_path):
    heard = []

    class Mine:
        def log(self, step, numbers):
            heard.append((step, numbers["train/loss"]))

        def close(self):
            heard.append("closed")

    record_five_steps(tmp_path, more_loggers=lambda: [Mine()])
    assert heard == [(2, 1.5), (4, 3.5), (5, 5.0), "closed"]


@pytest.mark.parametrize(("step", "want"), [(1, False), (3, True), (6, True), (7, True)])
def test_due_is_every_so_often_and_at_the_end(step, want):
    assert due(step, 3, total=7) == want

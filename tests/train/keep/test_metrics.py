"""What a run writes and shows: late but in order, and nothing twice behind a resume."""

import io
import json
import re

import jax.numpy as jnp
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.metrics import MetricWriter, Progress, Recorder, StepLog, read_until
from vitswin_jax.train.keep.timing import KINDS
from vitswin_jax.train.run.plan import Plan, due


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_window_is_fetched_when_the_next_one_closes():
    log = StepLog()
    for step, value in ((1, 1.0), (2, 3.0)):
        log.add(step, {"loss": jnp.float32(value)})
    assert log.turn() is None
    log.add(3, {"loss": jnp.float32(5.0)})
    assert log.turn() == (2, {"loss": 2.0})
    log.add(4, {"loss": jnp.float32(7.0)})
    assert log.settle() == [(3, {"loss": 5.0}), (4, {"loss": 7.0})]
    assert log.settle() == []


def test_a_value_that_is_not_finite_is_named_with_its_step():
    log = StepLog()
    log.add(6, {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(1.0)})
    log.add(7, {"loss": jnp.float32("nan"), "grad_norm": jnp.float32("inf")})
    with pytest.raises(UserError, match="grad_norm is inf, loss is nan at step 7; the run stops"):
        log.settle()


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint(tmp_path):
    """Rows behind the checkpoint's step, and the line a killed process was writing."""
    rows = [{"step": step, "train/loss": float(step)} for step in (1, 2, 3, 4)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "trai'
    (tmp_path / "metrics.jsonl").write_text(text)
    writer = MetricWriter(tmp_path, start_step=2)
    writer.write(3, {"train/loss": 0.5, "test/accuracy": float("nan")})
    writer.close()
    lines = read_until(tmp_path / "metrics.jsonl", 100)
    assert [json.loads(line) for line in lines] == [
        *rows[:2],
        {"step": 3, "train/loss": 0.5, "test/accuracy": None},
    ]


def test_away_from_a_terminal_progress_is_plain_lines():
    stream = io.StringIO()
    progress = Progress(step=0, total=10, batch_size=4, stream=stream, show=True)
    progress.advance(5)
    progress.say(5, {"train/loss": 1.25})
    progress.close()
    line = r"step 5/10  train/loss 1\.25  0:0\d left\n"
    assert re.fullmatch(line, stream.getvalue())


def test_on_a_terminal_it_is_a_bar_with_images_per_second():
    stream = Terminal()
    progress = Progress(step=2, total=10, batch_size=4, stream=stream, show=True)
    progress.advance(10)
    progress.say(10, {"train/loss": 1.25, "lr": 0.1})
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "100%" in last and "40.0/40.0" in last and "img/s" in last
    assert "train/loss 1.25" in last and "lr" not in last


def test_hosts_that_are_not_first_say_nothing():
    stream = Terminal()
    progress = Progress(step=0, total=10, batch_size=4, stream=stream, show=False)
    progress.advance(5)
    progress.say(5, {"train/loss": 1.25})
    progress.close()
    assert stream.getvalue() == ""


def test_the_recorder_writes_each_step_once_with_its_own_rate(tmp_path):
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
    recorder = Recorder(tmp_path, plan, lambda step: 0.1 * step, start_step=0)
    for step in recorder.inputs(range(1, 6)):
        recorder.record(step, {"loss": jnp.float32(step)})
    recorder.settle()
    recorder.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.3, 0.4])  # of the step's update
    assert [row["epoch"] for row in rows] == pytest.approx([0.8, 1.6, 2.0])
    assert all(row["images_per_second"] > 0 for row in rows)
    assert all(sum(row[f"time/{kind}"] for kind in KINDS) == pytest.approx(1) for row in rows)


@pytest.mark.parametrize(("step", "want"), [(1, False), (3, True), (6, True), (7, True)])
def test_due_is_every_so_often_and_at_the_end(step, want):
    assert due(step, 3, total=7) == want

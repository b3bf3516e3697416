"""What a run writes and shows; a resumed run writes nothing twice."""

import io
import json
import re

import pytest

from vitswin_jax.train.keep.loggers import Jsonl, Progress, read_until
from vitswin_jax.train.run.plan import Plan

PLAN = Plan(
    total_steps=10,
    warmup_steps=0,
    log_every=2,
    eval_every=5,
    checkpoint_every=5,
    keep_checkpoints=1,
    batch_size=4,
    steps_per_epoch=2.5,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_resumed_run_drops_what_lies_beyond_its_checkpoint(tmp_path):
    """Rows after the checkpoint's step, and the line a killed process was writing."""
    rows = [{"step": step, "train/loss": float(step)} for step in (1, 2, 3, 4)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "trai'
    (tmp_path / "metrics.jsonl").write_text(text)
    writer = Jsonl(tmp_path, start_step=2, tested=True)
    writer.log(3, {"train/loss": 0.5, "test/accuracy": float("nan")})
    writer.close()
    lines = read_until(tmp_path / "metrics.jsonl", 100, tested=True)
    assert [json.loads(line) for line in lines] == [
        *rows[:2],
        {"step": 3, "train/loss": 0.5, "test/accuracy": None},
    ]


@pytest.mark.parametrize("tested", [True, False])
def test_an_evaluation_that_the_checkpoint_does_not_know_is_written_anew(tmp_path, tested):
    """A stop cut it off; the resumed run wrote its row, and was stopped before it could save."""
    train = [{"step": step, "train/loss": 1.0} for step in (2, 4)]
    test = [{"step": step, "epoch": step / 2, "test/loss": 1.0} for step in (2, 4)]
    rows = [train[0], test[0], train[1], test[1]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = read_until(tmp_path / "metrics.jsonl", 4, tested=tested)
    assert [json.loads(line) for line in lines] == rows[: 4 if tested else 3]


def test_lines_that_are_no_rows_are_left_out_and_kept_beside(tmp_path, caplog):
    rows = [json.dumps({"step": step, "train/loss": float(step)}) for step in (1, 2, 3)]
    content = "\n".join([rows[0], "\0\0", "[]", rows[1], rows[2], '{"st']).encode() + b"\xff"
    for number in (1, 2):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        Jsonl(tmp_path, start_step=2, tested=True).close()
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == rows[:2]
        assert (tmp_path / f"metrics.jsonl.damaged-{number}").read_bytes() == content
        assert caplog.messages[-1] == (
            f"{tmp_path}/metrics.jsonl: 2 lines are no row of a run, and ignored; "
            f"metrics.jsonl.damaged-{number} keeps the whole file."
        )
    Jsonl(tmp_path, start_step=2, tested=True).close()
    assert len(caplog.messages) == 2


def test_away_from_a_terminal_progress_is_plain_lines():
    stream = io.StringIO()
    progress = Progress(PLAN, start_step=0, stream=stream)
    progress.advance(5)
    progress.log(5, {"train/loss": 1.25})
    progress.close()
    line = r"step 5/10  train/loss 1\.25  0:0\d left\n"
    assert re.fullmatch(line, stream.getvalue())


def test_on_a_terminal_it_is_a_bar_with_images_per_second():
    stream = Terminal()
    progress = Progress(PLAN, start_step=2, stream=stream)
    progress.advance(10)
    progress.log(10, {"train/loss": 1.25, "lr": 0.1})
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "100%" in last and "40.0/40.0" in last and "img/s" in last
    assert "train/loss 1.25" in last and "lr" not in last

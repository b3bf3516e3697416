"""A host's log of its life: every second once, compilation apart; and goodput by a stopwatch."""

import json
import logging
import os
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import pytest

from vitswin_jax.core.goodput import SPENT, log_of, read_goodput
from vitswin_jax.train.hosts.signals import StoppedError
from vitswin_jax.train.keep.journal import Compiling, Journal


def rows_of(workdir, host=0):
    return [json.loads(line) for line in log_of(workdir, host).read_text().splitlines()]


def test_every_second_from_the_start_to_the_end_has_one_kind(tmp_path):
    began, now = time.monotonic() - 3.0, time.time() - 3.0
    journal = Journal(tmp_path, began=began)
    with journal.written():
        time.sleep(0.1)
        journal.laps.lap("restore")
        journal.begin(5)
        for step in (6, 7):
            time.sleep(0.2)
            journal.laps.lap("device", waited=True)
            journal.advance(step)
        time.sleep(0.1)  # for the last checkpoint
    first, *_, last = rows = rows_of(tmp_path)
    assert first["began"] == pytest.approx(now, abs=0.1) and last["ended"] == 1
    assert [row["step"] for row in rows] == [0, 5, 6, 7, 7]
    spent = {kind: sum(row.get(kind, 0.0) for row in rows) for kind in (*SPENT, "wait")}
    assert spent["start"] >= 3.0 and spent["restore"] >= 0.1 and spent["save"] >= 0.1
    assert spent["device"] == spent["wait"] >= 0.4
    assert sum(spent.values()) - spent["wait"] == pytest.approx(time.monotonic() - began, abs=0.1)
    assert last["time"] == pytest.approx(time.time(), abs=0.1)


def test_a_log_is_small_and_never_late(tmp_path, monkeypatch):
    """10,000 steps a second for ten seconds, by a clock that the test sets, have 100 rows."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    journal = Journal(tmp_path, began=1000.0)
    with journal.written():
        journal.begin(0)
        for step in range(1, 100_001):
            clock[0] += 1e-4
            journal.advance(step)
        rows = rows_of(tmp_path)
        assert rows[2]["step"] == 1 and rows[-1]["step"] > 98_000
        assert len(rows) < 110
        clock[0] += 7 * 24 * 3600.0
        journal.advance(100_001)
        count = len(rows_of(tmp_path))
        for step in range(100_002, 100_102):
            clock[0] += 60.0
            journal.advance(step)
        assert len(rows_of(tmp_path)) - count < 11


def test_compilation_is_apart_wherever_it_happens(tmp_path):
    """Of one function, called in an evaluation: tracing takes half a second, the call no time."""

    @jax.jit
    def slow(x):
        time.sleep(0.5)
        return jnp.sin(x)

    journal = Journal(tmp_path)
    with journal.written():
        journal.begin(0)
        slow(1.0)
        time.sleep(0.2)
        journal.laps.lap("evaluate")
        slow(1.0)
        journal.laps.lap("device")
    rows = rows_of(tmp_path)
    compiling, evaluating = (
        sum(row.get(kind, 0.0) for row in rows) for kind in ("compile", "evaluate")
    )
    assert 0.5 <= compiling < 5.0 and 0.2 <= evaluating < compiling
    assert rows[-1].get("device", 0.0) < 0.2


def test_compilations_within_each_other_count_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    compiling = Compiling()
    try:
        for now, seconds in ((3.0, 1.0), (5.0, 1.0), (6.0, 5.0), (9.0, 2.0)):
            clock[0] = now
            jax.monitoring.record_event_duration_secs("/jax/core/compile/x", seconds)
        jax.monitoring.record_event_duration_secs("/jax/other", 50.0)
        assert compiling.take() == 5.0 + 2.0
        assert compiling.take() == 0.0
    finally:
        compiling.close()
    jax.monitoring.record_event_duration_secs("/jax/core/compile/x", 1.0)
    assert compiling.take() == 0.0


def test_a_process_begins_on_a_line_of_its_own(tmp_path):
    path = log_of(tmp_path, 0)
    path.parent.mkdir()
    path.write_text('{"step": 0, "time": 1.0, "began": 0.0, "start": 1.0}\n{"step": 3, "ti')
    with Journal(tmp_path).written():
        pass
    assert json.loads(path.read_text().splitlines()[2])["began"] > 0
    assert read_goodput(tmp_path).restarts == 1


def test_how_a_process_ends(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vitswin_jax")
    for error, ended in ((StoppedError("x", 15), 0), (ValueError("x"), 0), (None, 1)):
        try:
            with Journal(tmp_path).written():
                if error is not None:
                    raise error
        except (StoppedError, ValueError) as raised:
            assert raised is error
        assert rows_of(tmp_path)[-1]["ended"] == ended
    assert [line.startswith("goodput 0.0 %: ") for line in caplog.messages] == [True, True]


@pytest.mark.parametrize("broken", ["a file in the place of the folder", "a full disk"])
def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, caplog, broken):
    if broken.startswith("a file"):
        (tmp_path / "goodput").write_text("mine")
    else:
        (tmp_path / "goodput").mkdir()
        log_of(tmp_path, 0).symlink_to("/dev/full")
    with Journal(tmp_path).written():
        pass
    (line,) = caplog.messages
    assert line.startswith(f"cannot write {log_of(tmp_path, 0)}: ")


SLOW = """
import sys, time
from vitswin_jax import cli, trainer

NOTES, SECONDS = open(sys.argv.pop(1), "a", buffering=1), 0.3
make_steps = trainer.make_steps

def slowly(*args):
    step, first = make_steps(*args), []

    def call(state, *more):
        number, begin = int(state.step) + 1, time.monotonic()
        out = step(state, *more)
        if not first:  # which compiles
            first.append(begin := time.monotonic())
        time.sleep(SECONDS)
        NOTES.write(f"{number} {time.monotonic() - begin}\\n")
        return out

    return call

trainer.make_steps = slowly
sys.exit(cli.main(command="train"))
"""


def kill_when_logged(process, notes, workdir):
    """Kills a run whose log has the last step that is noted: it is written after the note."""
    while True:
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        noted = int(notes.read_text().splitlines()[-1].split()[0])
        logged = json.loads(log_of(workdir, 0).read_text().splitlines()[-1])["step"]
        if noted == logged:
            return process.kill()
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


@pytest.mark.long
def test_goodput_is_that_of_a_stopwatch_on_a_run_that_is_killed(
    train_command, environment, tmp_path
):
    """Killed twice, with half a row left in the log once; each lost step is taken again."""
    script, notes, workdir = tmp_path / "slow.py", tmp_path / "steps", tmp_path / "run"
    script.write_text(SLOW)
    notes.touch()
    more = ["--config.optim.epochs=2.0", "--config.run.eval_epochs=1.0"]
    more += ["--config.run.checkpoint_epochs=0.0", "--config.run.checkpoint_steps=8"]
    more += ["--config.run.log_steps=8"]
    python, _, *flags = train_command(workdir, *more)
    began, killed = time.monotonic(), []
    for kill_at in (13, 16, None):
        before = len(notes.read_text().splitlines())
        process = subprocess.Popen(
            [python, str(script), str(notes), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if kill_at is None:
            assert "report:" in process.stdout.readline()
            seconds = time.monotonic() - began
            process.communicate()
            assert process.returncode == 0
            break
        while len(notes.read_text().splitlines()) < before + kill_at:
            assert process.poll() is None
            time.sleep(0.01)
        kill_when_logged(process, notes, workdir)
        process.communicate()
        killed.append(time.monotonic())
        if not killed[1:]:
            with log_of(workdir, 0).open("a") as file:
                file.write('{"step": 9, "ti')
        time.sleep(2.0)
    taken = [line.split() for line in notes.read_text().splitlines()]
    kept = {int(step): float(seconds) for step, seconds in taken}
    goodput = read_goodput(workdir)
    assert goodput.restarts == 2
    assert goodput.total == pytest.approx(seconds, rel=0.01)
    assert goodput.productive == pytest.approx(sum(kept.values()), abs=0.01 * seconds)
    assert goodput.share == pytest.approx(sum(kept.values()) / seconds, abs=0.01)
    assert goodput.steps_repeated == len(taken) - len(kept) > 0
    page = (workdir / "report.html").read_text()
    assert f"2 restarts, {goodput.steps_repeated} steps repeated, " in page

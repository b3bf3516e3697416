"""Signals: a run, and every other command, ends with one line, and nothing is lost."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import script
from xla_flags import UNOPTIMISED

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def stops():
    """benchmarks/stops.py, which sends the signals."""
    with script("stops") as module:
        yield module


SMALL = {"model.depth": 1, "optim.total_steps": 14}


@pytest.fixture
def runs(stops, environment, tmp_path):
    """Small runs, whose programs are compiled once."""
    return stops.Runs(tmp_path, workers=1, changes=SMALL, env=environment)


def wait_for_row(runs, process, name="run"):
    """Waits until a run has written a row of metrics."""
    path = runs.folder / name / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_text()):
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGTERM"])
def test_signals_at_random_moments_lose_nothing(stops, tmp_path, name):
    """While it imports, compiles, restores, evaluates, saves: wherever the seed hits it."""
    runs = stops.Runs(tmp_path, workers=1, changes=SMALL, env={"XLA_FLAGS": UNOPTIMISED})
    count = 10 if name == "SIGINT" else 3
    number = getattr(signal, name)
    wrong = stops.stop_again_and_again(runs, number, count, random.Random(name))
    assert wrong == []


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once_and_the_last_checkpoint_stands(stops, runs):
    process = runs.start("run")
    wait_for_row(runs, process)
    os.killpg(process.pid, signal.SIGSTOP)  # so that the first is not obeyed before the second
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGCONT)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    ended = stops._end(process)
    assert ended.faults(signal.SIGINT) == [], ended.told
    for name in ("run", "unbroken"):
        assert runs.finish(name).status == 0
    assert runs.outcome("run") == runs.outcome("unbroken")


WAITS = """
import sys, time
from vitswin_jax.core.signals import asked_to_end, end_at_signals
end_at_signals("; the same command resumes.")
with asked_to_end() as asked:
    {save}
    print("ready", flush=True)
    try:
        time.sleep(60)
    finally:
        pass
"""


def start(script, **options):
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )
    assert process.stdout.readline() == "ready\n"
    return process


SIGNALS = [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]


@pytest.mark.parametrize(("number", "name"), SIGNALS)
def test_what_has_nothing_to_save_ends_at_once(number, name):
    process = start(WAITS.format(save=""))
    process.send_signal(number)
    _, told = process.communicate(timeout=10)
    assert told == f"error: stopped by {name}; the same command resumes.\n"
    assert process.returncode == 128 + number


def test_a_second_signal_ends_what_is_saving_and_twins_are_one():
    """Terminals, `timeout` and launchers send a signal twice: within a quarter of a second."""
    process = start(WAITS.format(save="asked.save()"))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    time.sleep(0.4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=10)
    assert told == "error: ended at once by a second Ctrl-C; the same command resumes.\n"
    assert process.returncode == 130


def test_an_ignored_signal_stays_ignored():
    """As `nohup` has it."""
    ignore = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = start(ignore + WAITS.format(save=""))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.kill()
    process.communicate()


GONE = """
import os, sys, time
from vitswin_jax.core.signals import asked_to_end, end_at_signals
end_at_signals()
with open({path!r}, "w") as file, asked_to_end() as asked:
    asked.save()
    while asked.number is None:
        time.sleep(0.01)
    time.sleep(0.1)
    print("saved", file=sys.stderr, flush=True)  # raises where the terminal has gone
    file.write("saved")
    raise SystemExit(128 + asked.number)
"""


LEADS = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # its session's terminal


def test_a_terminal_that_closes_leaves_time_to_save(tmp_path):
    """Nothing can be printed any more, and that is no error."""
    path = tmp_path / "saved"
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", LEADS + GONE.format(path=str(path))],
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(its_end)
        while not path.exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.close(terminal)  # the system sends SIGHUP
    assert process.returncode == 128 + signal.SIGHUP
    assert path.read_text() == "saved"


def test_other_commands_end_with_the_same_status(tmp_path):
    """And leave no temporary file where they were writing."""
    script = f"""
import sys, time
from pathlib import Path
from vitswin_jax import cli
from vitswin_jax.core.atomic import replacing
sys.argv = ["vitswin", "models"]
from vitswin_jax.cli import models
def run(args):
    with replacing({str(tmp_path / "out")!r}):
        print("ready", flush=True)
        time.sleep(60)
models.run = run
cli.main()
"""
    process = start(script)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (130, "error: stopped by Ctrl-C.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_work_is_done_changes_no_status():
    """It comes when Python clears its modules, after it has given signals their default back."""
    script = """
import os, signal
from vitswin_jax.core.signals import end_at_signals
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT):
        kill(me, number)
late = Late()
end_at_signals()
print("ready", flush=True)
"""
    with start(script) as process:
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (0, "")

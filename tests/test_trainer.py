"""Whole runs: their files, and that no way of stopping them changes the result."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from documents import Reader
from fixtures_train import (
    OWN_MOUNTS,
    PROGRESS,
    ROOT,
    assert_same_weights,
    may_mount,
    without_times,
)
from kinds import mostly_long
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitswin_jax import load_metadata, load_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.timing import KINDS
from vitswin_jax.trainer import train_and_evaluate

STEPS = 8  # what the cut-down recipe comes to
PROFILE = "--profile=2:4"


def read_rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(train, tmp_path_factory):
    """(workdir, finished process) of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    return workdir, finish(train, workdir, PROFILE)


@pytest.fixture(scope="module")
def unbroken(whole_run):
    """The workdir of that run."""
    return whole_run[0]


def finish(train, workdir, *more, **options):
    """Runs the recipe to its end; returns the finished process."""
    done = train(workdir, *more, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_leaves_all_that_its_users_need(whole_run):
    unbroken, done = whole_run
    assert done.stdout.startswith("vit  test accuracy ") and "(450 images)  report:" in done.stdout
    assert f"step {STEPS}/{STEPS}" in done.stderr and "left" in done.stderr
    assert json.loads((unbroken / "config.json").read_text())["data"]["dataset"] == "digits"
    rows = read_rows(unbroken)
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4, 6, 8]
    spent = [[row[f"time/{kind}"] for kind in KINDS] for row in rows if "train/loss" in row]
    assert [sum(shares) for shares in spent] == pytest.approx([1.0] * 4)
    tests = [row for row in rows if "test/accuracy" in row]
    assert [row["step"] for row in tests] == [4, 8]
    assert all(0 <= row["test/accuracy"] <= 1 for row in tests)
    metadata = load_metadata(unbroken)
    assert metadata.metrics["test/accuracy"] == pytest.approx(tests[-1]["test/accuracy"])
    assert metadata.class_names == tuple("0123456789")
    assert metadata.provenance["step"] == STEPS and "train.py" in metadata.provenance["command"]
    model, variables = load_pretrained(unbroken)
    assert model.num_classes == 10 and variables["params"]["head"]["kernel"].shape == (16, 10)
    events = EventAccumulator(str(unbroken))
    events.Reload()
    assert [e.step for e in events.Scalars("test/accuracy")] == [4, 8]
    page = (unbroken / "report.html").read_text()
    assert len(list(unbroken.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1
    assert "http://" not in page.replace("http://www.w3.org", "") and "<img" in page


@pytest.mark.long
def test_a_finished_run_says_its_result_again_and_changes_nothing(train, whole_run):
    unbroken, first = whole_run
    weights = (unbroken / "model.safetensors").read_bytes()
    rows = read_rows(unbroken)
    assert finish(train, unbroken, PROFILE).stdout == first.stdout
    assert (unbroken / "model.safetensors").read_bytes() == weights
    assert read_rows(unbroken) == rows


def wait_for(process, workdir, moment):
    """Waits until a run has written so many lines of metrics, or has ended."""
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= moment:
            return
        time.sleep(0.01)


def assert_in_use(train, workdir, process, family):
    """Starts a second run in the workdir of one that is stopped, and so does not end meanwhile."""
    process.send_signal(signal.SIGSTOP)
    if process.poll() is None:
        second = train(workdir, family=family)
        line = rf"error: {workdir} is in use by process {process.pid} on \S+ since 20.*\n"
        assert second.returncode == 1 and re.fullmatch(line, second.stderr), second.stderr


KILLED = [  # family, flags, and the lines of metrics after which the run is killed
    ("vit", (), (2,)),
    ("vit", (), (1, 4)),
    ("swin", (), (1, 4)),
    ("vit", ("--config.quantize=fp8",), (1, 4)),
    ("vit", ("--config.quantize=int8",), (1, 4)),
]


@pytest.mark.parametrize(("family", "more", "moments"), mostly_long(KILLED, KILLED[:1]))
def test_killing_a_run_at_any_moment_loses_nothing(
    train, train_command, environment, unbroken, tmp_path, family, more, moments
):
    """kill -9 at each of the moments and a random wait; then the run gets through."""
    whole = unbroken
    if family != "vit" or more:
        whole = tmp_path / "whole"
        finish(train, whole, *more, family=family)
    broken = tmp_path / "broken"
    dice = random.Random(family)
    kills = 0
    for moment in moments:
        with subprocess.Popen(
            train_command(broken, *more, family=family),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            wait_for(process, broken, moment)
            time.sleep(dice.uniform(0, 0.2))
            if moment == moments[0] and not more:
                assert_in_use(train, broken, process, family)
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    finish(train, broken, *more, family=family)
    assert_same_weights(whole, broken)
    keys = ("step", "train/loss", "test/accuracy", "test/loss")
    told, expected = (
        [{k: row[k] for k in keys if k in row} for row in read_rows(workdir) if "test/loss" in row]
        for workdir in (broken, whole)
    )
    assert told == expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    train, train_command, environment, unbroken, tmp_path, number, name
):
    """To its whole group, workers too; weights and rows are those of a run that nothing stopped."""
    with subprocess.Popen(
        train_command(tmp_path / "run", "--config.data.workers=1"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        wait_for(process, tmp_path / "run", 1)
        os.killpg(process.pid, number)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert last.startswith(f"error: stopped by {name} at step ")
    assert last.endswith("; all is saved. To resume, repeat the command.")
    step = int(last.split(" at step ")[1].split()[0])
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    finish(train, tmp_path / "run")
    assert_same_weights(unbroken, tmp_path / "run")
    assert without_times(read_rows(tmp_path / "run")) == without_times(read_rows(unbroken))


@pytest.mark.long
def test_a_killed_worker_ends_the_run_in_a_line(train_command, environment, tmp_path):
    with subprocess.Popen(
        train_command(tmp_path / "run", "--config.data.workers=1"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        wait_for(process, tmp_path / "run", 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in map(int, children):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
        _, told = process.communicate(timeout=120)
    (line,) = [line for line in told.splitlines() if not line.startswith(PROGRESS)]
    assert process.returncode == 1
    assert line.startswith("error: a data worker (process ") and "memory" in line


@pytest.mark.long
@pytest.mark.skipif(not may_mount(), reason="needs a file system of its own, which is not allowed")
def test_a_full_disk_ends_the_run_with_one_line_and_room_lets_it_go_on(
    train, train_command, environment, unbroken, tmp_path
):
    """The second checkpoint finds no room; the first is whole, and the run resumes from it."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    command = shlex.join(train_command(disk / "run"))
    script = f"""
    mount -t tmpfs -o size=500k tmpfs {disk}
    {command}
    echo status $? >&2
    mount -o remount,size=64m {disk}
    {command} && cp {disk}/run/model.safetensors {kept}
    """
    done = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )
    first, after = done.stderr.split("status 1\n")
    lines = [line for line in first.splitlines() if not line.startswith(PROGRESS)]
    assert lines == [
        f"error: cannot write the checkpoint of step 4 in {disk}/run/checkpoints: No space left on "
        "device; the run stops, and the newest is of step 2."
    ]
    assert "step 2/8" not in after and "step 4/8" in after
    assert_same_weights(unbroken, kept)


@pytest.mark.long
def test_the_best_weights_are_those_of_the_best_evaluation(make_config, tmp_path):
    """Whatever comes after it; a run that has ended can be asked for the last."""
    changes = {
        "run.eval_epochs": 0.0,
        "run.eval_steps": 1,
        "run.checkpoint_epochs": 10.0,
        "run.keep_checkpoints": 1,
        "run.keep_best": 1,
        "optim.peak_lr": 0.02,
    }
    train_and_evaluate(make_config(**changes, **{"run.final": "best"}), tmp_path)
    accuracies = {
        row["step"]: row["test/accuracy"] for row in read_rows(tmp_path) if "test/accuracy" in row
    }
    best = max(accuracies, key=lambda step: (accuracies[step], step))
    assert best < STEPS
    metadata = load_metadata(tmp_path)
    assert metadata.provenance["step"] == best
    assert metadata.metrics["test/accuracy"] == pytest.approx(accuracies[best])
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [best, STEPS]
    train_and_evaluate(make_config(**changes), tmp_path)
    assert load_metadata(tmp_path).provenance["step"] == STEPS


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    make_config, tmp_path
):
    each_step = {"run.checkpoint_epochs": 0.048, "mesh.data": 1}
    config = make_config(**each_step, **{"optim.peak_lr": 1e30})
    with pytest.raises(UserError, match=r"loss is (nan|inf).* at step \d; the run stops"):
        train_and_evaluate(config, tmp_path)
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved and not (tmp_path / "model.safetensors").exists()
    rows = read_rows(tmp_path)
    assert all(row.get("train/loss", 0.0) is not None for row in rows)


@pytest.fixture
def train_here(train_command, tmp_path, monkeypatch):
    """Runs train.py in this process; returns its status and all that it prints."""
    # This process has other tests to run.
    monkeypatch.setattr("vitswin_jax.core.heap.keep_freed_memory", lambda: False)
    reader = Reader(ROOT, programs=tmp_path)

    def train(workdir, *more):
        return reader.run(shlex.join(["python", *train_command(workdir, *more)[1:]]))

    return train


def test_the_workdir_of_another_config_is_refused_with_what_differs(train_here, unbroken):
    status, told = train_here(unbroken, "--config.optim.peak_lr=0.5", "--config.optim.b1=0.8")
    (line,) = told.strip().splitlines()
    assert status == 1
    assert "optim.peak_lr was 0.001 and is 0.5" in line
    assert "optim.b1 was None and is 0.8" in line


MISUSES = [
    ({"model.img_size": 15}, "img_size=15x15 is no multiple of patch_size=4x4"),
    ({"model.num_classes": 7}, "model.num_classes=7 but digits:train has 10 classes"),
    (
        {"data.batch_size": 12},
        "data.batch_size=12 must be a multiple of 8, which is mesh.data x mesh.fsdp; 16",
    ),
    ({"data.eval_batch_size": 9}, "data.eval_batch_size=9 must be a multiple of 8, which"),
    ({"data.dataset": "./nowhere"}, "nowhere"),
    ({"data.test_split": "tset"}, "tset"),
    ({"optim.name": "adamv"}, "did you mean 'adamw'"),
    ({"optim.warmup_epochs": 50.0}, "the warmup of .* must be shorter than the run"),
    ({"optim.epochs": 0.0}, "optim.epochs=0.0 must be above 0"),
    ({"optim.total_steps": 9}, "optim.total_steps=9 and optim.epochs=0.4 say the same twice"),
    ({"optim.freeze": ("haed/.*",)}, "'haed/.*' matches no parameter; the nearest are head/"),
    ({"optim.momentum": 0.9}, "optim.name='adamw' does not read optim.momentum=0.9"),
    ({"augment.mixup_alpha": -1.0}, "mixup_alpha=-1.0 must be 0"),
    ({"quantize": "fp16"}, "quantize='fp16' must be one of none, fp8, int8"),
    ({"loss.name": "hinge"}, "loss.name='hinge' must be one of softmax, sigmoid, bce"),
    ({"loss.name": "bce"}, "augment.label_smoothing=0.1 would set all classes to 1"),
    ({"mesh.data": 9}, "mesh.data=9 x mesh.fsdp=1 x mesh.tensor=1 must multiply to the 8 devices"),
    ({"mesh.tensor": 4}, "mesh.tensor=4 does not divide axis 0 of block_0/attn/proj/kernel"),
]


@pytest.mark.parametrize(("changes", "message"), MISUSES, ids=[next(iter(c)) for c, _ in MISUSES])
def test_a_config_that_cannot_run_says_why_and_writes_nothing(
    make_config, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message) as error:
        train_and_evaluate(make_config(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


FLAGS = [
    ("--config.optim.peak_lrr=1", "--config.optim.peak_lrr: there is no such flag or key; did you"),
    ("--config.optim.epochs=many", "--config.optim.epochs needs a number, not 'many'; now it is"),
    ("--config=configs/nothing.py", "configs/nothing.py: no such file, and no recipe is called so"),
    ("--confg.seed=1", "--confg.seed: there is no such flag or key; did you mean --seed?"),
    ("--profile=4:2", "--profile=4:2 must be START:STOP"),
    ("./stray", "./stray: no such folder"),
    ("--num_hosts=0", "--num-hosts=0 must be 1 or more"),
]


@pytest.mark.parametrize(("flag", "message"), FLAGS, ids=[flag for flag, _ in FLAGS])
def test_a_wrong_flag_is_one_line(train_here, tmp_path, flag, message):
    status, told = train_here(tmp_path / "run", flag)
    (line,) = told.strip().splitlines()
    assert status == 1
    assert line.startswith("error: ") and message in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_workdir_is_named(make_config, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        train_and_evaluate(make_config(), tmp_path / "run")


def test_a_workdir_that_is_a_file_is_named(make_config, tmp_path):
    (tmp_path / "run").write_text("")
    for workdir in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match=rf"workdir {workdir}: cannot be written"):
            train_and_evaluate(make_config(), workdir)

"""Several hosts, as processes on the loopback: one host's numbers, and one end for all."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures_hosts import CHANGES, SGD, STEPS, end, errors, free_port, metrics_of, wait_until
from PIL import Image
from safetensors.numpy import load_file
from xla_flags import UNOPTIMISED

from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts import join as hosts
from vitswin_jax.train.keep.claim import check_name
from vitswin_jax.train.keep.workdir import check_shared
from vitswin_jax.trainer import train_and_evaluate


def saved_steps(run):
    """Returns the steps of a run's checkpoints, without one that is being written."""
    return {int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()}


@pytest.fixture(scope="module")
def one_host(make_config, tmp_path_factory):
    """The workdir of a run on one device of this process."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train_and_evaluate(make_config(**SGD, **{"mesh.data": 1}), workdir)
    return workdir


def assert_same(one, other, *, atol, what="train/loss test/loss"):
    """Compares final parameters and the rows of what the runs measured."""
    ours, theirs = (load_file(workdir / "model.safetensors") for workdir in (one, other))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=atol, err_msg=name)
    rows = []
    for workdir in (one, other):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        rows.append([row for row in map(json.loads, lines) if row.keys() & set(what.split())])
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for row, its in zip(*rows, strict=True):
        measured = (key for key in row if not key.startswith(("images_per_second", "time/")))
        for key in measured:
            assert its[key] == pytest.approx(row[key], rel=atol, abs=atol), (key, row["step"])


@pytest.mark.long
def test_four_hosts_learn_what_one_host_learns(start, one_host, tmp_path):
    """No example twice or missed, in training and in evaluation, or the numbers would differ."""
    ended = end(start(tmp_path / "run", 4, *CHANGES, "--config.mesh.fsdp=2"))
    for host, (status, out, told) in enumerate(ended):
        assert status == 0, told
        assert ("(450 images)  report:" in out) == (host == 0)
        assert ("train/loss" in told) == (host == 0)
    assert (tmp_path / "run" / "report.html").exists()
    assert_same(one_host, tmp_path / "run", atol=1e-5)


@pytest.fixture(scope="module")
def two_hosts(train_command, environment, tmp_path_factory):
    """The workdir of a run on two hosts that nothing stopped, started by the script for one."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    script = Path(__file__).parents[3] / "docs" / "launch" / "local.sh"
    command = train_command(workdir, *CHANGES)[2:]  # without python and train.py
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(script), "2", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment | {"PATH": path},
    )
    assert done.returncode == 0 and done.stdout.count("(450 images)  report:") == 1, done.stderr
    return workdir


def test_two_hosts_by_the_script_learn_what_one_host_learns(two_hosts, one_host):
    assert_same(one_host, two_hosts, atol=1e-5)


SLICES = (*CHANGES, "--config.mesh.slices=2")


@pytest.mark.long
def test_two_slices_learn_what_one_mesh_learns(start, one_host, tmp_path):
    """Each host is a slice; mixup pairs images of both."""
    ended = end(start(tmp_path / "run", 2, *SLICES))
    assert [status for status, *_ in ended] == [0, 0], ended
    assert "mesh slice 2" in ended[0][2]
    assert_same(one_host, tmp_path / "run", atol=1e-5)


@pytest.mark.long
def test_a_lost_slice_ends_the_others_and_the_run_resumes_on_one(start, train, one_host, tmp_path):
    run = tmp_path / "run"
    both = start(run, 2, *SLICES)
    wait_until(both, lambda: len(metrics_of(run)) > 2)
    both[1].kill()
    (line,) = errors(end(both)[:1])
    assert line.startswith("error: lost host 1; to resume from the last checkpoint, repeat")
    done = train(run, *CHANGES)
    assert done.returncode == 0, done.stderr
    assert_same(one_host, run, atol=1e-4, what="test/loss")


@pytest.mark.long
def test_a_lost_slice_of_two_hosts_is_named_by_the_hosts_of_the_other_one(start, tmp_path):
    hosts = start(tmp_path / "run", 4, *SLICES, "--config.mesh.fsdp=2")
    wait_until(hosts, lambda: len(metrics_of(tmp_path / "run")) > 2)
    for lost in hosts[2:]:
        lost.kill()
    began = time.monotonic()
    for line in errors(end(hosts[:2])):
        assert line == (
            "error: lost hosts 2, 3; to resume from the last checkpoint, repeat the command on all "
            "hosts."
        )
    assert time.monotonic() - began < 15  # --lost_after is 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (1, "mesh.slices=3 does not divide the 2 devices; it can be 1, 2."),
        (
            3,
            "mesh.slices=3 cuts host 0 in two, and a slice is of whole hosts; with 2 hosts it can "
            "be 1, 2.",
        ),
    ],
)
def test_slices_that_the_hosts_do_not_make_are_one_line_on_each(start, tmp_path, devices, message):
    flags = f"{UNOPTIMISED} --xla_force_host_platform_device_count={devices}"
    own = (*CHANGES, "--config.mesh.slices=3")
    for line in errors(end(start(tmp_path / "run", 2, *own, more={"XLA_FLAGS": flags}))):
        assert line == f"error: {message}", line
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_hosts_lost_and_stopped_lose_nothing(start, train, one_host, tmp_path):
    """Two hosts, of which one is killed; again, and one gets SIGTERM; then one resumes alone."""
    run = tmp_path / "run"
    config = run / "config.json"
    both = start(run, 2, *CHANGES)
    wait_until(both, lambda: len(metrics_of(run)) > 2 and saved_steps(run))
    both[1].kill()
    (line,) = errors(end(both)[:1])
    assert line.startswith("error: lost host 1; to resume from the last checkpoint, repeat")
    saved = saved_steps(run)
    assert saved and max(saved) < STEPS

    begun = config.stat().st_mtime_ns
    both = start(run, 2, *CHANGES)
    wait_until(both, lambda: config.stat().st_mtime_ns != begun)
    both[1].send_signal(signal.SIGTERM)
    last = [told.strip().splitlines()[-1] for *_, told in end(both)]
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, last
    assert last[0] == last[1] and last[0].startswith("error: stopped by SIGTERM at step "), last
    step = int(last[0].split(" at step ")[1].split()[0])
    assert max(saved) < step < STEPS and (run / "checkpoints" / str(step)).is_dir()

    done = train(run, *CHANGES)
    assert done.returncode == 0, done.stderr
    # A run that stops writes the losses so far: what they are means over is not the same.
    assert_same(one_host, run, atol=1e-4, what="test/loss")


@pytest.mark.long
def test_hosts_killed_at_random_end_bit_for_bit_as_unbroken_ones(start, two_hosts, tmp_path):
    dice, run = random.Random(0), tmp_path / "run"
    for killed in dice.sample(range(2), 2):  # each of them once, the first and the writer too
        before = metrics_of(run)
        both = start(run, 2, *CHANGES)
        more = dice.randint(1, STEPS // 3)
        wait_until(both, lambda: len(metrics_of(run)) > len(before) + more)  # noqa: B023
        both[killed].kill()
        end(both)
        assert both[1 - killed].returncode != 0
        assert not (run / "model.safetensors").exists()
    ended = end(start(run, 2, *CHANGES))
    assert [status for status, *_ in ended] == [0, 0], ended
    assert_same(two_hosts, run, atol=0, what="test/loss")


@pytest.mark.long
def test_hosts_that_slurm_started_list_what_they_differ_in(start, tmp_path):
    own = (["--config.optim.peak_lr=0.5"], ["--config.seed=7"])
    one, other = errors(end(start(tmp_path / "run", own=own, slurm=True)))
    assert one == other
    assert "optim.peak_lr is 0.5 on host 0 and 0.001 on host 1; seed is 0 on host 0 and 7" in one
    assert not (tmp_path / "run").exists()


@pytest.fixture
def images(tmp_path):
    """The folders of two hosts, each with its own copy of a small dataset."""
    for split, number in (("train", 16), ("test", 4)):
        for i in range(number):
            path = tmp_path / "0" / "images" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(path)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    return tmp_path / "0", tmp_path / "1"


FOLDER = [
    "--config.data.dataset=images",
    "--config.model.in_chans=3",
    "--config.data.batch_size=4",
    "--config.optim.epochs=8.0",
    "--config.augment.mixup_alpha=0.0",
]


def zero(path):
    """Fills a file with zeros."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        pytest.param(
            shutil.rmtree,
            "host 1: .*images",
            marks=pytest.mark.long,
            id="before the first step",
        ),
        pytest.param(
            lambda images: (images / "train/a/2.png").unlink(),
            "images of data.train_split is 16 on",
            marks=pytest.mark.long,
            id="other data",
        ),
        pytest.param(
            lambda images: (images / "train/a/2.png").write_bytes(b"PNG"),
            'sizes of data.train_split is "[0-9a-f]+" on host 0 and',
            id="another file",
            marks=pytest.mark.long,
        ),
        pytest.param(
            lambda images: zero(images / "train/a/2.png"),
            "host 1: .*2.png",
            id="while others wait for it",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_one_host_lacks_ends_all_with_its_line(start, images, tmp_path, break_it, message):
    break_it(images[1] / "images")
    for line in errors(end(start(tmp_path / "run", 2, *FOLDER, folders=images))):
        assert re.search(message, line), line


def test_a_workdir_that_not_all_hosts_see_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be one folder that all hosts see"):
        check_shared(tmp_path, patience=0.0)
    (tmp_path / "config.json").write_text("{}")
    check_shared(tmp_path, patience=0.0)
    with pytest.raises(UserError, match=r"ftp://host/run: must be a folder, gs://BUCKET/"):
        check_name("ftp://host/run")


MISUSES = [
    ({"num_hosts": 2}, "--coordinator and --host_index are missing"),
    ({"coordinator": "a:1", "num_hosts": 2}, "go together; --host_index is missing"),
    ({"coordinator": "a", "num_hosts": 2, "host_index": 1}, "--coordinator=a must be HOST:PORT"),
    ({"coordinator": "a:1", "num_hosts": 2, "host_index": 2}, r"must lie in \[0, 2\)"),
]


@pytest.mark.parametrize(("said", "message"), MISUSES, ids=[m for _, m in MISUSES])
def test_hosts_said_by_half_are_refused(said, message):
    with pytest.raises(UserError, match=message), hosts.joined(**said):
        pass


@pytest.mark.parametrize("said", [{}, {"num_hosts": 1}])
def test_a_process_that_nothing_is_said_of_is_by_itself(said):
    with hosts.joined(**said) as host:
        assert host == 0
        hosts.check_same({"seed": 0})
        assert hosts.gather("alone") == ["alone"]
        with pytest.raises(UserError, match=r"^as it was$"), hosts.raising_together():
            raise UserError("as it was")


@pytest.mark.long
def test_hosts_that_do_not_come_are_told_of(train_command, environment, tmp_path):
    """Host 0 waits for the other in vain, and host 1 for a coordinator that is not there."""
    for host, message in ((0, "host 0 waited 1 s at .* and not all"), (1, "cannot reach the coor")):
        places = [f"--coordinator=127.0.0.1:{free_port()}", "--num_hosts=2"]
        places += [f"--host_index={host}"]
        done = subprocess.run(
            train_command(tmp_path / "run", *places, "--join_timeout=1"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment,
        )
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 1 and re.match(f"error: .*{message}", line), done.stderr


def test_a_pod_of_a_job_says_what_it_needs_to_find_the_others(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with hosts.joined() as host:  # a notebook's pod
        assert host == 0
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[k8s\]'"), hosts.joined():
        pass

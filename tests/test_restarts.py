"""Runs that are killed and start again from sets on their hosts' own disks."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures_hosts import CHANGES, end, wait_until
from fixtures_train import OWN_MOUNTS, PROGRESS, ROOT, assert_same_weights, may_mount

from vitswin_jax.core.goodput import RESTORE, read_goodput, read_processes
from vitswin_jax.weights.formats.orbax import steps_in

RATE = 20e6  # bytes a second, of throttle.c
LARGE = {  # its state has 60 MB
    "model.embed_dim": 320,
    "model.depth": 4,
    "model.num_heads": 4,
    "optim.epochs": 0.0,
    "optim.total_steps": 12,
    "run.eval_epochs": 10.0,
    "run.checkpoint_epochs": 0.0,
    "run.checkpoint_steps": 4,
}
LONG = {
    "optim.epochs": 3.0,
    "run.eval_epochs": 10.0,
    "run.checkpoint_epochs": 10.0,
}


def flags(keys):
    return [f"--config.{key}={value}" for key, value in keys.items()]


def local(folder, seconds=0.01):
    return flags({"run.local_dir": folder, "run.local_seconds": seconds})


def newest_set(disk, host=0):
    """The step of a host's newest set, 0 without one."""
    names = [path.stem for path in disk.glob(f"*/host-{host}/*.safetensors") if path.stem.isdigit()]
    return max(map(int, names), default=0)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """The library that throttles a folder."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler, for the throttle")
    library = tmp_path_factory.mktemp("throttle") / "throttle.so"
    source = Path(__file__).with_name("throttle.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.long
def test_a_killed_run_starts_from_its_disk_faster_than_from_a_slow_store(
    train_command, environment, slow, tmp_path
):
    """The workdir is on a store of 20 MB/s: the C library's reads and writes of it wait.

    The killed run is resumed twice: from the disk, and, as a copy, from the store.
    """
    store, disk = tmp_path / "store", tmp_path / "disk"
    store.mkdir()
    throttled = environment | {"LD_PRELOAD": str(slow), "THROTTLED": f"{store}/"}

    def run(workdir, *more, env=throttled):
        done = subprocess.run(
            train_command(workdir, *flags(LARGE), *more),
            capture_output=True, text=True, timeout=400, check=False, env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    run(tmp_path / "whole", env=environment)
    with subprocess.Popen(
        train_command(store / "run", *flags(LARGE), *local(disk)),
        stderr=subprocess.DEVNULL,
        env=throttled,
    ) as process:
        wait_until(
            [process],
            lambda: newest_set(disk) > max(steps_in(store / "run" / "checkpoints"), default=99),
        )
        process.kill()
    assert process.returncode == -signal.SIGKILL
    shutil.copytree(store / "run", store / "copy")
    step = newest_set(disk)
    (size,) = [path.stat().st_size for path in disk.glob(f"*/host-0/{step}.safetensors")]
    assert f"local set of step {step}: used" in run(store / "run", *local(disk))
    assert "local set" not in run(store / "copy")
    restored = {}
    for name in ("run", "copy"):
        assert_same_weights(tmp_path / "whole", store / name)
        restored[name] = read_processes(store / name, 0)[-1].spent(RESTORE)
    assert restored["copy"] > 0.8 * size / RATE
    assert restored["run"] < restored["copy"] / 2
    goodput = read_goodput(store / "run")
    assert goodput.local_restores == 1 and goodput.local_saves > 1
    page = (store / "run" / "report.html").read_text(encoding="utf-8")
    assert "1 local restore, " in page and ", from a start to the first step " in page
    assert not list(disk.iterdir())


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory):
    """The workdir of a short run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(workdir).returncode == 0
    return workdir


@pytest.mark.long
@pytest.mark.skipif(not may_mount(), reason="needs a file system of its own, which is not allowed")
def test_a_full_disk_of_a_host_is_one_warning(train_command, environment, unbroken, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = shlex.join(train_command(tmp_path / "run", *local(disk)))
    done = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", f"mount -t tmpfs -o size=20k tmpfs {disk}\n{command}"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [
        line for line in done.stderr.splitlines() if not line.startswith((*PROGRESS, "good"))
    ]
    assert line.startswith("local set of step ") and "No space left on device; training" in line
    assert_same_weights(unbroken, tmp_path / "run")


@pytest.mark.long
def test_a_host_that_cannot_write_its_local_sets_is_one_warning_that_names_them(start, tmp_path):
    """A file is in the place of its folder; the other host writes, and both end."""
    folders = disks(tmp_path)
    (folders[1] / "disk").touch()
    ended = end(start(tmp_path / "run", 2, *CHANGES, *local("disk"), folders=folders))
    assert [status for status, *_ in ended] == [0, 0], ended
    (line,) = [line for line in ended[1][2].splitlines() if line.startswith("local set")]
    place = re.escape(str(folders[1] / "disk"))
    assert re.fullmatch(
        rf"local set of step \d+: cannot write {place}/run-\w+/host-1/\d+\.safetensors: "
        r"Not a directory; training continues, with the checkpoints of its workdir \(run"
        r"\.local_dir\)\.",
        line,
    )
    (line,) = [line for line in ended[0][2].splitlines() if line.startswith("local set")]
    assert "host 1, which keeps the copies of host 0, has none: Not a directory; training" in line


@pytest.mark.long
def test_a_loop_of_the_shell_starts_a_killed_run_again(
    train_command, environment, unbroken, tmp_path
):
    disk, workdir = tmp_path / "disk", tmp_path / "run"
    no_checkpoints = flags({"run.checkpoint_epochs": 10.0})
    command = train_command(workdir, *local(disk), *no_checkpoints)
    with subprocess.Popen(
        [ROOT / "docs" / "launch" / "restart.sh", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as loop:
        for kill_at in (1, 4):
            wait_until([loop], lambda: newest_set(disk) >= kill_at)  # noqa: B023
            children = Path(f"/proc/{loop.pid}/task/{loop.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            time.sleep(0.5)
        _, told = loop.communicate(timeout=240)
    assert loop.returncode == 0, told
    assert told.count("starts again") == 2 and told.count(": used, from ") == 2
    assert_same_weights(unbroken, workdir)


@pytest.mark.long
def test_a_loop_of_the_shell_ends_where_a_command_always_fails_or_is_stopped():
    loop = str(ROOT / "docs" / "launch" / "restart.sh")
    for script, status, starts in (("exit 1", 1, 3), ("exit 143", 143, 1), ("exit 0", 0, 1)):
        command = [loop, "sh", "-c", f"echo starts; {script}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, "starts\n" * starts)


@pytest.mark.long
def test_two_hosts_start_from_their_disks_if_both_have_the_set(start, tmp_path):
    """Once as they were killed, and once with the sets of one of them damaged.

    It then uses those of the other, which are on the same disk and have the same parts.
    """
    disk, run = tmp_path / "disk", tmp_path / "run"
    keys = [*CHANGES, *flags(LONG)]
    told = []
    for damaged in (False, True):
        both = start(run, 2, *keys, *local(disk, 0.05))
        before = newest_set(disk)
        wait_until(both, lambda: min(newest_set(disk, host) for host in (0, 1)) > before + 3)  # noqa: B023
        both[1].kill()
        told.append(both[0].communicate(timeout=60)[1])
        assert "lost host 1" in told[-1], told[-1]
        if damaged:
            for path in disk.glob("*/host-1/*.safetensors"):
                path.write_bytes(b"")
    ended = end(start(run, 2, *keys, *local(disk, 0.05)))
    assert [status for status, *_ in ended] == [0, 0], ended
    assert ": used, from " in told[1] and "local set" not in told[0]
    assert ": used, from " in ended[0][2] and ": passed over: " not in ended[0][2]
    assert "resumed: after step " in ended[0][2]
    assert [status for status, *_ in end(start(tmp_path / "whole", 2, *keys))] == [0, 0]
    assert_same_weights(tmp_path / "whole", run)
    assert not list(disk.iterdir())


def disks(tmp_path):
    """Two folders in which hosts are started, so that a relative `run.local_dir` is one's own."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir(exist_ok=True)
    return folders


def kill_after_copies(both, folders):
    """Kills host 1 when each disk has newer sets of both hosts; returns the lines of host 0."""

    def newest():
        return min(newest_set(folder / "disk", host) for folder in folders for host in (0, 1))

    before = newest()
    wait_until(both, lambda: newest() > before + 3)
    both[1].kill()
    told = both[0].communicate(timeout=60)[1]
    both[1].communicate()
    assert "lost host 1" in told, told
    assert "has none:" not in told  # a neighbour's fault
    return told


@pytest.fixture
def halves():
    """Flags of a run of which each of two hosts has a half of the state."""
    return [*CHANGES, *flags(LONG), "--config.mesh.fsdp=2"]


@pytest.mark.long
def test_a_host_whose_machine_was_replaced_gets_its_part_from_its_neighbour(
    start, halves, tmp_path
):
    run, folders = tmp_path / "run", disks(tmp_path)
    there = [*halves, *local("disk", 0.05)]
    kill_after_copies(start(run, 2, *there, folders=folders), folders)
    shutil.rmtree(folders[1] / "disk")
    ended = end(start(run, 2, *there, folders=folders))
    assert [status for status, *_ in ended] == [0, 0], ended
    told = ended[0][2]
    assert ": used, from " in told and "; host 1 has its part from host 0." in told, told
    assert not list(tmp_path.glob("*/disk/*"))
    assert [status for status, *_ in end(start(tmp_path / "whole", 2, *halves))] == [0, 0]
    assert_same_weights(tmp_path / "whole", run)


@pytest.mark.long
def test_hosts_may_be_renumbered_and_a_damaged_copy_is_passed_over(start, halves, tmp_path):
    run, folders = tmp_path / "run", disks(tmp_path)
    there = [*halves, *local("disk", 0.05)]
    kill_after_copies(start(run, 2, *there, folders=folders), folders)
    shutil.rmtree(folders[0] / "disk")
    folders = folders[::-1]  # the machine that is left is host 0 now
    told = kill_after_copies(start(run, 2, *there, folders=folders), folders)
    assert ": used, from " in told and "; host 1 has its part from host 0." in told, told
    shutil.rmtree(folders[1] / "disk")
    for path in folders[0].glob("disk/*/host-1/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    ended = end(start(run, 2, *there, folders=folders))
    assert [status for status, *_ in ended] == [0, 0], ended
    lines = [line for line in ended[0][2].splitlines() if ": passed over: host 1: " in line]
    why = "is not what was written (host 1 has its part from host 0)."
    assert any(line.endswith(why) for line in lines), ended
    assert ": used, from " not in ended[0][2]

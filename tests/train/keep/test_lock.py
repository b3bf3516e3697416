"""One process at a time has a workdir, and one that was killed has none."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading

import filelock
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep import lock as module
from vitswin_jax.train.keep.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from vitswin_jax.train.keep.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="vitswin_jax")
    return caplog


def refused(workdir):
    with pytest.raises(UserError) as caught, locked(workdir):
        pass
    return str(caught.value)


def test_the_process_that_has_it_is_named_and_a_killed_one_has_it_no_more(tmp_path, holder, told):
    line = refused(tmp_path)
    host = os.uname().nodename
    assert line.startswith(f"{tmp_path} is in use by process {holder.pid} on {host} since 20")
    holder.send_signal(signal.SIGSTOP)  # it has not ended
    assert refused(tmp_path) == line
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass
    (message,) = told.messages
    assert f"process {holder.pid} on {host}" in message and "ended without" in message
    with locked(tmp_path):
        pass
    assert len(told.messages) == 1


def test_threads_and_nested_calls_are_refused_too(tmp_path):
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in refused(tmp_path)
        lines = []
        thread = threading.Thread(target=lambda: lines.append(refused(tmp_path)))
        thread.start()
        thread.join()
        assert lines and "is in use by process" in lines[0]
    with locked(tmp_path):
        pass


def test_a_number_that_is_used_again_is_no_holder(tmp_path, told):
    """After a reboot another process may have the number of the one that was killed."""
    record = {"pid": 1, "host": os.uname().nodename, "since": "2020-01-01 00:00:00 UTC"}
    (tmp_path / ".lock").write_text(json.dumps(record))
    with locked(tmp_path):
        pass
    assert "process 1 on " in told.text


MOUNTS = "/dev/sda / {kind} {options} 0 0\nproc /proc proc rw 0 0\n"


@pytest.mark.parametrize(
    ("kind", "options", "judged"),
    [
        ("ext4", "rw", True),
        ("overlay", "rw", True),
        ("nfs4", "rw,vers=4.2,local_lock=none", True),
        ("lustre", "rw,flock", True),
        ("nfs", "rw,nolock,local_lock=all", False),
        ("lustre", "rw,localflock", False),
        ("fuse.gcsfuse", "rw", False),
        ("9p", "rw", False),
    ],
)
def test_a_lock_of_another_host_is_judged_where_locks_are_shared(
    tmp_path, monkeypatch, told, kind, options, judged
):
    (tmp_path / "mounts").write_text(MOUNTS.format(kind=kind, options=options))
    monkeypatch.setattr(module, "_MOUNTS", tmp_path / "mounts")
    record = {"pid": 1234, "host": "node7", "since": "2020-01-01 00:00:00 UTC"}
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps(record))
    if judged:
        with locked(tmp_path):
            pass
        assert "process 1234 on node7" in told.text
        return
    for _ in range(2):
        assert refused(tmp_path) == (
            f"{tmp_path} was in use by process 1234 on node7 since 2020-01-01 00:00:00 UTC, and "
            "this file system does not show here whether it still is; if that process has ended, "
            f"remove {lock}."
        )
        assert json.loads(lock.read_text()) == record
    lock.unlink()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{", "\0\0", '{"pid": 3}', "[" * 10_000])
def test_a_lock_file_with_anything_in_it_is_taken(tmp_path, text, told):
    (tmp_path / ".lock").write_text(text)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not told.messages


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_lock_that_is_no_file_is_one_line(tmp_path, make):
    make(tmp_path / ".lock")
    assert refused(tmp_path) == f"{tmp_path}/.lock: must be a file of the run; remove it."


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks."""

    def acquire(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_file_stands_in(tmp_path, told):
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []
    with subprocess.Popen(["true"]) as dead:
        pass
    marker = tmp_path / ".lock.pid"
    marker.write_text(f"{dead.pid}\n{filelock._identity.host_name()}\n")
    with locked(tmp_path):
        pass
    marker.write_text("1234\nnode7\n")
    line = refused(tmp_path)
    assert "is in use by process 1234 on node7 since 20" in line
    assert f"(if that has ended, remove {marker})" in line

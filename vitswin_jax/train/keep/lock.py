"""One run per workdir: a lock that ends with the process that holds it, however that ends.

The operating system gives up a lock (`flock`) when its process ends, of NFS also on another host;
so nothing is left to be judged by process numbers, which are used again. A file system without
such locks gets `filelock`'s file with the holder's number and host, which a killed process leaves.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from vitswin_jax.core.signals import removed_at_end
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError

log = logger(__name__)

LOCK, MARKER = ".lock", ".lock.pid"
"""The file that is locked, with who holds it; the file that stands in for a lock."""
_MOUNTS = Path("/proc/self/mounts")
_OF_ONE_HOST = ("fuse", "9p", "virtiofs", "vboxsf")
"""Beginnings of file systems that hosts share, while a lock may be seen on its own host only."""
_LOCAL_OPTIONS = {"nolock", "local_lock=all", "local_lock=flock", "localflock"}
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_PATIENCE = 1.0  # seconds for a holder that has just come to write who it is


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a workdir for this process; raises UserError that names the process that has it."""
    path = workdir / LOCK
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: must be a file of the run; remove it.")
    lock = filelock.FileLock(
        path, mode=0o664, blocking=False, thread_local=False, fallback_to_soft=False
    )
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _in_use(workdir, _holder(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks (%s).", workdir, error.strerror)
        with _marked(workdir):
            yield
        return
    try:
        _take_over(workdir, path)
        try:
            path.write_text(json.dumps(_ourselves()) + "\n", encoding="utf-8")
            removed_at_end.add(str(path))
            yield
        finally:
            removed_at_end.discard(str(path))
            with contextlib.suppress(OSError):  # a disk that is full, or gone
                os.truncate(path, 0)
    finally:
        lock.release()


def is_held(workdir: Path) -> bool:
    """Returns whether a process holds a workdir."""
    try:
        with locked(workdir):
            return False
    except UserError:
        return True


def _ourselves() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _in_use(workdir: Path, holder: str) -> UserError:
    return UserError(
        f"{workdir} is in use by {holder}; wait until it has ended, stop it, or choose another "
        "--workdir."
    )


def _holder(path: Path) -> str:
    """Returns who holds a lock, as far as it is written."""
    give_up = time.monotonic() + _PATIENCE
    while (holder := _read(path)) is None and time.monotonic() < give_up:
        time.sleep(0.05)
    return "another process" if holder is None else _named(holder)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_bytes()[:4096])
        return {key: str(holder[key]) for key in ("pid", "host", "since")}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _take_over(workdir: Path, path: Path) -> None:
    """Says whose lock it was, if that ended without giving it up; raises where it may not have."""
    before = _read(path)
    if before is None:
        return
    if before["host"] != socket.gethostname() and not _reaches_other_hosts(workdir):
        raise UserError(
            f"{workdir} was in use by {_named(before)}, and this file system does not show here "
            f"whether it still is; if that process has ended, remove {path}."
        )
    log.info(
        "%s: %s ended without releasing its lock; this run takes the lock over.",
        workdir,
        _named(before),
    )


def _reaches_other_hosts(workdir: Path) -> bool:
    """Returns whether a lock in a folder is seen by all hosts that see the folder."""
    try:
        mounts = [line.split()[1:4] for line in _MOUNTS.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeError):
        return True
    real = workdir.resolve()
    # The last of those at the longest path is what is seen.
    over = [m for m in mounts if real.is_relative_to(m[0].replace("\\040", " "))]
    if not over:
        return True
    _, kind, options = max(reversed(over), key=lambda mount: len(mount[0]))
    return not (kind.startswith(_OF_ONE_HOST) or _LOCAL_OPTIONS & set(options.split(",")))


@contextlib.contextmanager
def _marked(workdir: Path) -> Iterator[None]:
    """Holds a workdir by a file that is there as long as it is held."""
    path = workdir / MARKER
    lock = filelock.SoftFileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _in_use(workdir, _marked_by(path)) from None
    try:
        yield
    finally:
        lock.release()


def _marked_by(path: Path) -> str:
    try:
        pid, host, *_ = path.read_text(encoding="utf-8").split("\n")
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(path.stat().st_mtime))
    except (OSError, ValueError):
        return "another process"
    host = host.partition("?")[0]
    return f"process {pid} on {host} since {since} (if that has ended, remove {path})"

"""Files that are written whole or not at all; any room may use this."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from vitswin_jax.core.signals import removed_at_end
from vitswin_jax.core.types import UserError

_TEMPORARY = re.compile(r"\.(.+)\.(\d{1,10})\.tmp", re.ASCII | re.DOTALL)


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a disk, which any file that is written there meets."""


def of_disk(text: str) -> bool:
    """Returns whether a message states an error of a disk.

    >>> of_disk("cannot write a/b: No space left on device.")
    True
    """
    return any(os.strerror(number) in text for number in DISK)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes a UserError that names `path` of an OSError in its block."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`, and moves what was written there over it at the end.

    A reader sees the old file or the new one, never a part. Where the block raises, nothing of it
    is left; an OSError becomes a UserError that names `path`.
    """
    path = Path(path)
    temporary = _beside(path)
    removed_at_end.add(str(temporary))
    try:
        with writing(path):
            temporary.touch()
            mode = temporary.stat().st_mode  # a new file's: some writers make theirs private
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut may leave the new name with no content
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        removed_at_end.discard(str(temporary))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises UserError where `replacing` could not write, before there is something to write."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder.")
    with writing(path):
        _beside(path).touch()
        _beside(path).unlink()


def sweep(folder: Path, names: Collection[str]) -> None:
    """Removes what `replacing` left of files with some names, where its process was killed.

    No process of this host may be at it; those of other hosts are the caller's to exclude.
    """
    for path in folder.iterdir():
        left = _TEMPORARY.fullmatch(path.name)
        if left and left[1] in names and not _is_alive(int(left[2])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(pid: int) -> bool:
    """Returns whether another process has a number."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")

"""A file from the network, whole and checked, or not at all; once here, no network is needed.

Python's own urllib does it (connections.py, answers.py): fsspec and epath neither resume where a
connection broke, nor check, nor let several processes ask for one file at once. A file is compared
with the digest that its publisher states, or else with those that the server states; where neither
does, with its length. The SHA-256 that was seen is kept beside each file, in a record; a file that
is taken from the cache is compared with it by size alone, which finds what copying and editing do
to a file without hashing a gigabyte at every load.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.terminal import logger, progress
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.answers import Answer, Broken, Version, asking
from vitswin_jax.weights.connections import LEAST
from vitswin_jax.weights.digests import (
    Digest,
    data_digest,
    file_digest,
    published_digest,
    wrong_digest,
)

log = logger(__name__)

Record = Mapping[str, str | int]
"""What is kept of a download: its `address`, `size` in bytes and `sha256`."""

LARGEST = 8 << 30
"""Bytes of the largest file: DINOv2's giant has 4.5 GB."""


def fetch(address: str, path: Path, *, digest: str | None = None, at_most: int = LARGEST) -> Record:
    """Downloads `address` as `path` unless it is there; returns its record, kept as `path`.json.

    `digest` is `sha256:` or `md5:` and the first digits, or all. A file that was put there by hand
    is checked once. Raises UserError, in one line, where the file cannot be had, or is not what
    was published: then it is removed, unless it was put there by hand. What an interrupted
    download has got is kept, and the next call resumes from there.
    """
    if (record := _record(path)) and path.exists() and _size(path) == record["size"]:
        return record
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if path.exists():
                return _adopt(address, path, digest)
            part, version = _download(address, path, at_most)
            digests = published_digest(digest) or version.digests
            if not digests and version.total is None:
                log.warning(
                    "%s: its size and digest are unknown, so the %s bytes that arrived are not "
                    "checked",
                    address,
                    f"{_size(part):,}",
                )
            if wrong := wrong_digest(digests, functools.partial(file_digest, part)):
                part.unlink()
                raise UserError(f"{address}: the download {wrong}; it is removed.")
            part.replace(path)
            return _write_record(address, path)


def read_address(address: str, *, at_most: int) -> bytes:
    """Returns the body of an http or https address, at most `at_most` bytes; stores nothing.

    Raises UserError, in one line, where it cannot be had whole.
    """
    data = bytearray()
    with asking(address) as answer:
        try:
            _check_size(address, answer.length or 0, at_most)
            for chunk in answer.chunks():
                data += chunk
                _check_size(address, len(data), at_most)
        except Broken as error:
            whole = f" of {answer.length:,}" if answer.length else ""
            raise UserError(
                f"{address}: the connection broke after {len(data):,}{whole} bytes ({error})."
            ) from error
    if wrong := wrong_digest(answer.version.digests, functools.partial(data_digest, bytes(data))):
        raise UserError(f"{address}: the download {wrong}.")
    return bytes(data)


def has_digest(path: Path, digest: str) -> bool:
    """Returns whether a file has a digest: `sha256:` or `md5:` and the first digits, or all."""
    return not wrong_digest(published_digest(digest), functools.partial(file_digest, path))


def _check_size(address: str, size: int, at_most: int) -> None:
    if size > at_most:
        raise UserError(f"{address}: is larger than the {at_most:,} bytes that are read.")


def _adopt(address: str, path: Path, digest: str | None) -> Record:
    """Returns the record of a file that another process, or a hand, has put there."""
    record = _record(path)
    if record and _size(path) == record["size"]:
        return record
    digests = published_digest(digest)
    if wrong := wrong_digest(digests, functools.partial(file_digest, path)):
        raise UserError(f"{path}: {wrong} by {address}; remove it.")
    if record and digest is None:
        raise UserError(
            f"{path}: has {_size(path):,} bytes, but had {record['size']:,} when it was "
            "downloaded; remove it."
        )
    return _write_record(address, path)


def _write_record(address: str, path: Path) -> Record:
    sha256 = file_digest(path, "sha256")
    record: Record = {"address": address, "size": _size(path), "sha256": sha256}
    with replacing(_record_of(path)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _record(path: Path) -> Record | None:
    try:
        record = json.loads(_record_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"size", "sha256"} <= record.keys() else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process downloads `path`; the system frees the lock of a dead one."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire()
    except NotImplementedError as error:
        raise UserError(
            f"{path.parent}: the file system has no locks; set VITSWIN_CACHE to another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(address: str, path: Path, at_most: int) -> tuple[Path, Version]:
    """Returns a part file with all of `address`, and what the server states of it.

    Resumes after each break that got further, by LEAST bytes.
    """
    part = path.with_name(f".{path.name}.part")
    done = -LEAST
    while True:
        before = done
        version, broken = _receive(address, part, target=path, at_most=at_most)
        if not broken:
            _version_of(part).unlink(missing_ok=True)
            return part, version
        done = _size(part)
        if done < before + LEAST:
            raise UserError(
                f"{address}: the connection broke after {done:,} bytes; try again, and it resumes "
                f"({broken})."
            )


def _receive(address: str, part: Path, *, target: Path, at_most: int) -> tuple[Version, str]:
    """Appends to the part file what one connection gives.

    Returns the version of the file, and why something is missing; nothing: it is not.
    """
    start, known = _begun(part)
    with asking(address, start=start, known=known, by_hand=target) as answer:
        if start and not answer.start:
            log.info("%s: is another file now, and is downloaded from its beginning", address)
        _check_answer(address, answer, part, at_most)
        _keep_version(part, answer.version)
        broken = ""
        with (
            part.open("ab" if answer.start else "wb") as file,
            progress(
                answer.version.total,
                initial=answer.start,
                title=target.name,
                unit="B",
                scale=True,
            ) as bar,
        ):
            size = answer.start
            try:
                for chunk in answer.chunks():
                    size += len(chunk)
                    _check_size(address, size, at_most)
                    _write(file, chunk, address, part)
                    bar.update(len(chunk))
            except Broken as error:
                broken = str(error)
    if not broken and answer.version.total not in (None, size):
        broken = "the server closed it"
    return answer.version, broken


def _check_answer(address: str, answer: Answer, part: Path, at_most: int) -> None:
    """Raises UserError where what an answer promises cannot be the file, or does not fit."""
    if answer.media_type == "text/html":
        raise UserError(
            f"{address}: the server sends a web page, not a file; does the network ask for a login?"
        )
    _check_size(address, answer.start + (answer.length or 0), at_most)
    more = answer.length or 0
    if shutil.disk_usage(part.parent).free < more:
        raise UserError(f"{address}: {more:,} bytes more do not fit on the disk of {part.parent}.")


def _write(file: BinaryIO, chunk: bytes, address: str, part: Path) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{address}: the disk of {part.parent} is full; make room, and try again: the download "
            f"resumes from {part.name}."
        ) from error


def _begun(part: Path) -> tuple[int, Version]:
    """Returns how many bytes of which version an earlier download has left; 0: none are usable."""
    try:
        tag, *stated = _version_of(part).read_text(encoding="utf-8").splitlines()
        size = _size(part)
        facts = [line.split(" ", 2) for line in stated]
        totals = [int(fact[1]) for fact in facts if fact[0] == "bytes"]
        digests = tuple(Digest(*fact) for fact in facts if fact[0] != "bytes")
    except (OSError, ValueError, TypeError):
        return 0, Version()
    return size, Version(tag, totals[0] if totals else None, digests)


def _keep_version(part: Path, version: Version) -> None:
    """Keeps what a later download compares; nothing where nothing tells versions apart."""
    if not version.tag:
        _version_of(part).unlink(missing_ok=True)
        return
    total = [] if version.total is None else [f"bytes {version.total}"]
    lines = [version.tag, *total, *(" ".join(digest) for digest in version.digests)]
    _version_of(part).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _size(path: Path) -> int:
    return path.stat().st_size


def _version_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")

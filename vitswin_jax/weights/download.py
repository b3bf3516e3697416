"""A file from the network, whole and checked, or not at all; once here, no network is needed.

Python's own urllib does it: fsspec and epath neither go on where a connection broke, nor check, nor
let several processes ask for one file at once. A file that nobody published a digest of is checked
by its length. The SHA-256 that was seen is kept beside each file, in a record; a file that is taken
from the cache is compared with it by size alone, which finds what copying and editing do to a file
without hashing a gigabyte at every load.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from tqdm import tqdm

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.types import UserError

log = logging.getLogger(__name__)

Record = Mapping[str, str | int]
"""What is kept of a download: its `address`, `size` in bytes and `sha256`."""

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_HEADERS = {"User-Agent": "vitswin_jax", "Accept-Encoding": "identity"}


def fetch(address: str, path: Path, *, digest: str | None = None) -> Record:
    """Downloads `address` as `path` unless it is there; returns its record, kept as `path`.json.

    `digest` is `sha256:` or `md5:` and the first digits, or all. A file that was put there by hand
    is checked once. Raises UserError, in one line, where the file cannot be had, or is not what
    was published: then it is removed, unless it was put there by hand. What an interrupted
    download has got is kept, and the next call goes on from there.
    """
    if (record := _record(path)) and path.exists() and _size(path) == record["size"]:
        return record
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # One process at a time; the system frees the lock of one that died.
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                return _adopt(address, path, digest)
            part = _download(address, path)
            if wrong := _wrong_digest(part, digest):
                part.unlink()
                raise UserError(f"{address}: what came {wrong}; it is removed.")
            part.replace(path)
            return _write_record(address, path)


def read_address(address: str, *, at_most: int) -> bytes:
    """Returns what an http or https address has, up to `at_most` bytes; it is kept nowhere.

    Raises UserError, in one line, where it cannot be had whole.
    """
    with _open(address, _HEADERS) as response:
        length = response.length  # None: the server does not say
        try:
            data = b"" if (length or 0) > at_most else response.read(at_most + 1)
        except (http.client.HTTPException, OSError) as error:
            reason = str(error) or type(error).__name__
            raise UserError(f"{address}: the connection broke ({reason}).") from error
    if max(length or 0, len(data)) > at_most:
        raise UserError(f"{address}: is larger than the {at_most:,} bytes that are read.")
    if length is not None and len(data) != length:
        raise UserError(f"{address}: the connection broke after {len(data):,} of {length:,} bytes.")
    return data


def file_digest(path: Path, algorithm: str) -> str:
    """Returns a file's digest in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def has_digest(path: Path, digest: str) -> bool:
    """Returns whether a file has a digest: `sha256:` or `md5:` and the first digits, or all."""
    return not _wrong_digest(path, digest)


def _wrong_digest(path: Path, digest: str | None) -> str:
    """Returns what is wrong with a file's digest, or nothing."""
    if digest is None:
        return ""
    algorithm, _, digits = digest.partition(":")
    found = file_digest(path, algorithm)[: len(digits)]
    return (
        "" if found == digits else f"has the {algorithm} {found}..., not {digits}... as published"
    )


def _adopt(address: str, path: Path, digest: str | None) -> Record:
    """Returns the record of a file that another process, or a hand, has put there."""
    record = _record(path)
    if record and _size(path) == record["size"]:
        return record
    if wrong := _wrong_digest(path, digest):
        raise UserError(f"{path}: {wrong} by {address}; remove it.")
    if record and digest is None:
        raise UserError(
            f"{path}: has {_size(path):,} bytes, and {record['size']:,} when it was downloaded; "
            "remove it."
        )
    return _write_record(address, path)


def _write_record(address: str, path: Path) -> Record:
    sha256 = file_digest(path, "sha256")
    record: Record = {"address": address, "size": _size(path), "sha256": sha256}
    with replacing(_record_of(path)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _record(path: Path) -> Record | None:
    try:
        record = json.loads(_record_of(path).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"size", "sha256"} <= record.keys() else None


def _download(address: str, path: Path) -> Path:
    """Returns a part file with all of `address`; goes on after each break that got further."""
    part = path.with_name(f".{path.name}.part")
    done = -1
    while True:
        before = done
        if _receive(address, part, target=path):
            _version_of(part).unlink(missing_ok=True)
            return part
        done = _size(part)
        if done <= before:
            raise UserError(
                f"{address}: the connection broke after {done:,} bytes; try again, and it goes on."
            )


def _receive(address: str, part: Path, *, target: Path) -> bool:
    """Appends to the part file what one connection gives; returns whether that is all."""
    version = _version_of(part)
    headers = _HEADERS
    start = _size(part) if part.exists() and version.exists() else 0
    if start:  # whose file has changed since sends it from the beginning
        headers = headers | {"Range": f"bytes={start}-", "If-Range": version.read_text()}
    with _open(address, headers, target=target) as response:
        start = start if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers["Content-Length"]
        total = None if length is None else start + int(length)
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise UserError(
                f"{address}: {total - start:,} bytes more do not fit on the disk of {part.parent}."
            )
        tag = response.headers["ETag"] or response.headers["Last-Modified"] or ""
        if tag and not tag.startswith("W/"):
            version.write_text(tag)
        else:  # nothing tells its versions apart: what is there will not be continued
            version.unlink(missing_ok=True)
        broken = False
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(  # on standard error, where that is a terminal
                total=total, initial=start, desc=target.name[:40], unit="B", unit_scale=True,
                disable=None,
            ) as progress,
        ):  # fmt: skip
            try:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                broken = True
    return not broken and total in (None, _size(part))


def _open(
    address: str, headers: Mapping[str, str], *, target: Path | None = None
) -> http.client.HTTPResponse:
    """Opens an address; `target` is where its file may be put by hand instead."""
    try:
        request = urllib.request.Request(address, headers=dict(headers))
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers:
            kept = {name: headers[name] for name in headers.keys() - {"Range", "If-Range"}}
            return _open(address, kept, target=target)
        raise UserError(f"{address}: the server answers {error.code} {error.reason}.") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise UserError(f"{address}: is not an address ({error}).") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason or type(error).__name__
        by_hand = f"; without a network, put the file there as {target}" if target else ""
        raise UserError(
            f"{address}: {urlsplit(address).netloc} cannot be reached ({reason}){by_hand}."
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size


def _version_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")

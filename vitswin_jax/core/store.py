"""Object stores, gs:// and s3://: whole objects, written, read and listed through fsspec.

A store has no rename and no append, and a written object is whole or not there. fsspec's memory://
is a store too, that of one process.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vitswin_jax.core.atomic import DISK, writing
from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.store_errors import NO_BUCKET, NOT_THERE, hush_clients, reason_of
from vitswin_jax.core.types import UserError

SCHEMES: Mapping[str, tuple[str, str]] = {
    "gs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "memory": ("", ""),
}
"""The package that reads and writes a store, and this project's extra that installs it."""
PATIENCE = 20.0
"""Seconds in which a store that answers with an error, or not at all, is asked again."""
_ANSWER = {"s3": 20.0, "gs": 10.0}  # seconds without a byte of an answer
_CONNECT = 5.0  # seconds to reach a store
_AT_ONCE = 8  # objects that are sent or fetched at a time


class StoreError(UserError):
    """A store that refuses, or does not answer."""


class Stored(NamedTuple):
    """An object: its size in bytes, and a mark that changes with its content."""

    size: int
    mark: str


def is_url(path: object) -> bool:
    """Returns whether a path is in an object store.

    >>> is_url("gs://bucket/runs/x"), is_url("runs/x"), is_url("https://host/weights.pth")
    (True, False, False)
    """
    return str(path).partition("://")[0] in SCHEMES and "://" in str(path)


class Store:
    """The objects below one address, by their names relative to it."""

    def __init__(self, url: str) -> None:
        """Raises UserError for a store that is unknown or whose package is not installed."""
        scheme, _, place = url.partition("://")
        place = place.rstrip("/")
        self.url = f"{scheme}://{place}"
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
            raise UserError(f"{url}: {scheme}:// is no store that is known; use {known} or a path.")
        if not place or place.startswith("/") or "@" in place or "//" in place:
            raise UserError(f"{url}: must be {scheme}://BUCKET/PATH.")
        package, extra = SCHEMES[scheme]
        import fsspec

        hush_clients()
        try:
            self._files, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, **_options(scheme)
            )
        except ImportError as error:
            raise UserError(
                f"{url}: needs {package}: pip install 'vitswin_jax[{extra}]'."
            ) from error
        except Exception as error:
            raise StoreError(f"{url}: cannot be opened: {reason_of(error).words}.") from error
        if scheme == "s3":
            self._files.retries = 1

    def list(self) -> dict[str, Stored]:
        """Returns all objects by name; raises UserError for one that would leave a folder."""
        found = self._ask("read", "", self._find)
        names = {path: path[len(self._root) :].lstrip("/") for path in found}
        names = {path: name for path, name in names.items() if name and not name.endswith("/")}
        for name in names.values():
            if not {"", ".", ".."}.isdisjoint(name.split("/")):
                raise UserError(
                    f"{self.url}/{name}: is no name of a file below a folder; remove it."
                )
        return {
            name: Stored(int(found[path]["size"] or 0), _mark(found[path]))
            for path, name in names.items()
        }

    def _find(self) -> dict[str, Any]:
        """Returns the facts of all objects by path; raises FileNotFoundError without a bucket."""
        self._files.invalidate_cache()
        found: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            found = self._files.find(self._root, detail=True)
        bucket = self._root.lstrip("/").partition("/")[0]
        if not found and not self.url.startswith("memory://") and not self._files.exists(bucket):
            raise FileNotFoundError(f"there is no bucket {bucket}")
        return found

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, None where there is none."""

        def cat() -> bytes | None:
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._ask("read", name, cat)

    def write(self, name: str, content: bytes) -> None:
        """Writes an object of some bytes."""
        self._ask("written", name, lambda: self._files.pipe_file(self._path(name), content))

    def send(self, files: Mapping[str, Path]) -> None:
        """Writes objects of files, by name."""
        self._each(self._send, files.items())

    def _send(self, item: tuple[str, Path]) -> None:
        name, file = item
        self._ask("written", name, lambda: self._files.put_file(str(file), self._path(name)))

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Writes files of objects, by name; their folders are made.

        Raises UserError, which names the file, where this host's disk is full or read-only.
        """
        self._each(self._fetch, files.items())

    def _fetch(self, item: tuple[str, Path]) -> None:
        name, file = item
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        self._ask("read", name, lambda: self._files.get_file(self._path(name), str(file)), file)

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error."""
        self._each(self._remove, names)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

        self._ask("removed", name, remove)

    def _each(self, function: Any, items: Iterable[Any]) -> None:
        """Calls a function with each item, some at a time; the first error ends the others."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store") as pool:
            try:
                for future in [pool.submit(function, item) for item in items]:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, what: str, name: str, call: Callable[[], Any], file: Path | None = None) -> Any:
        """Calls the store's client, again for `PATIENCE` seconds if it fails; returns its answer.

        Whatever the client raises becomes a StoreError in one line, or where it writes a file and
        the disk is at fault, a UserError that names the file.
        """
        begin, wait = time.monotonic(), 0.5
        while True:
            try:
                return call()
            except Exception as error:
                if file is not None and isinstance(error, OSError) and error.errno in DISK:
                    raise UserError(f"cannot write {file}: {error.strerror}.") from error
                reason = reason_of(error)
                if reason is NOT_THERE and what == "written":
                    reason = NO_BUCKET
                if not reason.passes or time.monotonic() + wait - begin > PATIENCE:
                    place = f"{self.url}/{name}" if name else self.url
                    raise StoreError(f"{place}: cannot be {what}: {reason.words}.") from error
            time.sleep(wait)
            wait *= 2


def _options(scheme: str) -> Mapping[str, Any]:
    """Returns the options of a store's client, which else waits for an answer for ever.

    `Store` calls again, so S3's client does not. Google's calls up to 6 times, in half a minute.
    """
    if scheme == "s3":
        config = {"connect_timeout": _CONNECT, "read_timeout": _ANSWER[scheme]}
        return {"config_kwargs": {**config, "retries": {"total_max_attempts": 1}}}
    if scheme == "gs":
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT, sock_read=_ANSWER[scheme]
        )
        return {"requests_timeout": timeout}
    return {}


def folder_of(url: str, kind: str) -> Path:
    """Returns the folder of the cache that has copies of what is below an address.

    >>> folder_of("s3://bucket/runs/x", "runs").name
    'x-dbe53622'
    """
    url = url.rstrip("/")
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    last = re.sub(r"[^\w.-]+", "-", url.rpartition("/")[2])[:60]
    return cache_dir() / "stored" / kind / f"{last}-{digest}"


def _mark(info: Mapping[str, Any]) -> str:
    """Returns a mark that changes with an object's content."""
    marks = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
    return str(next((info[key] for key in marks if info.get(key)), ""))

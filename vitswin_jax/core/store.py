"""Object stores, gs:// and s3://: whole objects, written, read and listed through fsspec.

A store has no rename and no append, and a written object is whole or not there. fsspec's memory://
is a store too, that of one process.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.types import UserError

SCHEMES: Mapping[str, tuple[str, str]] = {
    "gs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "memory": ("", ""),
}
"""The package that reads and writes a store, and this project's extra that installs it."""
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    # A store that does not answer is asked again a few times, and is an error after a minute.
    "s3": {
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 20,
            "retries": {"max_attempts": 2, "mode": "standard"},
        }
    },
}
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

        try:
            self._files, self._root = fsspec.core.url_to_fs(
                self.url, use_listings_cache=False, **_OPTIONS.get(scheme, {})
            )
        except ImportError as error:
            raise UserError(
                f"{url}: needs {package}: pip install 'vitswin_jax[{extra}]'."
            ) from error
        except Exception as error:
            raise StoreError(f"{url}: cannot be opened: {_reason(error)}.") from error

    def list(self) -> dict[str, Stored]:
        """Returns all objects by name; raises UserError for one that would leave a folder."""
        with self._asked("read"):
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                self._check_bucket()
                return {}
        if not found:
            with self._asked("read"):
                self._check_bucket()
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

    def _check_bucket(self) -> None:
        """Raises FileNotFoundError where there is no such bucket."""
        bucket = self._root.lstrip("/").partition("/")[0]
        if not self.url.startswith("memory://") and not self._files.exists(bucket):
            raise FileNotFoundError(f"there is no bucket {bucket}")

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object, None where there is none."""
        with self._asked("read", name):
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes an object of some bytes."""
        with self._asked("written", name):
            self._files.pipe_file(self._path(name), content)

    def send(self, files: Mapping[str, Path]) -> None:
        """Writes objects of files, by name."""
        self._each(self._send, files.items())

    def _send(self, item: tuple[str, Path]) -> None:
        name, file = item
        with self._asked("written", name):
            self._files.put_file(str(file), self._path(name))

    def fetch(self, files: Mapping[str, Path]) -> None:
        """Writes files of objects, by name; their folders are made."""
        self._each(self._fetch, files.items())

    def _fetch(self, item: tuple[str, Path]) -> None:
        name, file = item
        with self._asked("read", name):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._path(name), str(file))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there are no error."""
        self._each(self._remove, names)

    def _remove(self, name: str) -> None:
        with self._asked("removed", name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _each(self, function: Any, items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store") as pool:
            for future in [pool.submit(function, item) for item in items]:
                future.result()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _asked(self, what: str, name: str = "") -> Iterator[None]:
        """Makes a StoreError, in one line, of whatever a store's client raises in the block."""
        try:
            yield
        except Exception as error:
            place = f"{self.url}/{name}" if name else self.url
            raise StoreError(f"{place}: cannot be {what}: {_reason(error)}.") from error


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


def _reason(error: Exception) -> str:
    """Returns the reason of an error of a store's client, in a few words."""
    seen: list[BaseException] = [error]
    while (cause := seen[-1].__cause__) is not None and len(seen) < 5:
        seen.append(cause)
    text = f"{type(error).__name__} {error} {' '.join(map(str, seen[1:]))}"
    for mark, reason in _KNOWN:
        if re.search(mark, text, re.IGNORECASE):
            return reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.rstrip(".")
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


_KNOWN = (
    (r"no bucket|NoSuchBucket|bucket does not exist", "there is no such bucket"),
    (
        r"credential|Anonymous caller|Unauthenticated|\b401\b",
        "no credentials are found, or they are not accepted",
    ),
    (
        r"AccessDenied|Access Denied|PermissionError|Forbidden|\b403\b",
        "permission is denied for these credentials",
    ),
    (
        r"EndpointConnection|ConnectTimeout|Cannot connect|ConnectionRefused|ConnectorError",
        "the store does not answer",
    ),
    (r"SlowDown|InternalError|ServiceUnavailable|\b50[0-9]\b", "the store answers with an error"),
)
"""Patterns of the errors of stores' clients, and the reason that each shows."""

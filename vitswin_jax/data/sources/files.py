"""Files, local or in an object store: listing, reading, and records that are files.

A path with "://" in it, such as gs://bucket/flowers, is read through fsspec, which needs gcsfs for
gs:// and s3fs for s3://; every other path through the operating system.
"""

from __future__ import annotations

import collections
import glob
import operator
import os
import posixpath
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, SupportsIndex

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Label, Record, UserError, listed
from vitswin_jax.data.channels import ARRAY_SUFFIX
from vitswin_jax.data.formats import FORMATS, INSTALL, SUFFIXES

log = logger(__name__)

IMAGE_SUFFIXES = frozenset(suffix for name in FORMATS for suffix in SUFFIXES[name])
"""What the files of pictures end in, as far as `data.decode` reads them."""

_UNREAD = {
    suffix: name for name, ends in SUFFIXES.items() if name not in FORMATS for suffix in ends
}
"""What the files of images end in that are not read here, and their format."""

ARCHIVERS = "__MACOSX"
"""The folder that macOS puts into zip files; what is in it are no images."""


SIZED = 10_000
"""Of so many files of a split the sizes are asked for, evenly spaced; a large one has millions."""


def is_image(path: str) -> bool:
    """Returns whether a file's suffix is a picture's, in small letters or capitals."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122, ten times faster


def images_among(paths: Iterable[str]) -> list[str]:
    """Returns the images among files: the pictures or, where there are none, the .npy files.

    Beside pictures, arrays are masks, depths or features.
    """
    paths = list(paths)
    pictures = [path for path in paths if is_image(path)]
    return pictures or [path for path in paths if path.lower().endswith(ARRAY_SUFFIX)]


def note_unread(folder: str, paths: Iterable[str]) -> None:
    """Logs how many of a folder's files are images that only another installation reads."""
    names = [_UNREAD.get(os.path.splitext(path)[1].lower()) for path in paths]  # noqa: PTH122
    for name, count in collections.Counter(filter(None, names)).items():
        log.warning(
            "%s: %d file(s) are %s and are left out; to read them, %s",
            folder,
            count,
            name,
            INSTALL[name],
        )


def why_left_out(paths: Iterable[str]) -> dict[str, int]:
    """Returns how many files below class folders are no records, by the reason.

    >>> why_left_out(["rose/1.jpg", "rose/notes.txt", "a.md", "rose/Thumbs.db", "b.png"])
    {'no images: .db, .md, .txt': 3, 'in no class folder': 1}
    """
    others, reasons = set(), collections.Counter[str]()
    for path in paths:
        suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
        if suffix in _UNREAD:
            reasons[f"{_UNREAD[suffix]}, which is not read here"] += 1
        elif not is_image(path):
            others.add(suffix or "without a suffix")
            reasons[""] += 1
        elif "/" not in path:
            reasons["in no class folder"] += 1
    return {reason or f"no images: {listed(sorted(others))}": n for reason, n in reasons.items()}


def is_remote(path: str) -> bool:
    """Returns whether a path is fsspec's rather than the operating system's."""
    return "://" in path


def is_folder(path: str) -> bool:
    """Returns whether a folder is there."""
    return _remote(path).isdir(path) if is_remote(path) else _native(path).is_dir()


def is_file(path: str) -> bool:
    """Returns whether a file is there."""
    return _remote(path).isfile(path) if is_remote(path) else _native(path).is_file()


def folder_names(path: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted, links too; without hidden ones."""
    if is_remote(path):
        items = _remote(path).ls(path, detail=True)
        names = [item["name"].rstrip("/") for item in items if item["type"] == "directory"]
        names = [name.rpartition("/")[2] for name in names]
    else:
        names = [_as_text(item.name) for item in _native(path).iterdir() if item.is_dir()]
    return sorted(name for name in names if not _is_hidden(name))


def file_paths(path: str, *, deep: bool) -> list[str]:
    """Returns the files in a folder, relative to it with "/", sorted; hidden ones are passed over.

    With `deep` also those in its folders, at any depth.
    """
    paths = _remote_paths(path, deep) if is_remote(path) else _local_paths(path, deep)
    return sorted(path for path in paths if not any(map(_is_hidden, path.split("/"))))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == ARCHIVERS


def _remote_paths(path: str, deep: bool) -> Iterator[str]:
    files, root = _remote(path), _remote(path)._strip_protocol(path).rstrip("/")
    for found in files.find(path, maxdepth=None if deep else 1):
        yield found[len(root) :].lstrip("/")


def _local_paths(path: str, deep: bool) -> Iterator[str]:
    above: dict[str, frozenset[str]] = {}  # real paths that a folder is in, by its path
    root = _native(path)
    for directory, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        inside_of = above.pop(directory.replace(os.sep, "/"), frozenset())
        if any(f"{outer}{os.sep}".startswith(f"{real}{os.sep}") for outer in inside_of):
            folders.clear()  # a link to a folder that it is in
            continue
        folders[:] = [name for name in folders if deep and not _is_hidden(name)]
        above |= dict.fromkeys((f"{directory}/{name}" for name in folders), inside_of | {real})
        inside = os.path.relpath(directory, root).replace(os.sep, "/")
        yield from (_as_text(name if inside == "." else f"{inside}/{name}") for name in names)


def matching(pattern: str) -> list[str]:
    """Returns the files that match a pattern with *, ? and [...], sorted; ** is any folders."""
    if is_remote(pattern):
        files = _remote(pattern)
        return sorted(files.unstrip_protocol(path) for path in files.glob(pattern))
    found = glob.glob(str(_native(pattern)), recursive=True)  # noqa: PTH207, it may be absolute
    return sorted(map(_as_text, found))


def read_file(path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
    """Returns a file's bytes, or those from `start` to before `stop`.

    Raises UserError, which names the file, where it cannot be read.
    """
    try:
        if is_remote(path):
            return _remote(path).cat_file(path, start=start, end=stop)
        native = path if _UTF_8 else _native(path)  # for every image: Path costs as much again
        with open(native, "rb") as file:  # noqa: PTH123
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read: No such file.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # of a name with a NUL
        raise UserError(f"{path}: cannot be read: no file can be called that.") from error
    except Exception as error:  # an object store's client raises exceptions of its own
        if not is_remote(path):
            raise
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}.") from error


def read_text(path: str, *, file_names: bool = False) -> str:
    """Returns a file's text; raises UserError where it cannot be read or is not UTF-8.

    With `file_names`, bytes that are not UTF-8 are as Python has them in names of files.
    """
    errors = "surrogateescape" if file_names else "strict"
    try:
        return read_file(path).decode("utf-8-sig", errors)  # spreadsheets begin with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error.reason}.") from error


def open_file(path: str) -> Any:
    """Opens a file, a binary one to be read from and sought in."""
    return _remote(path).open(path, "rb") if is_remote(path) else _native(path).open("rb")


def version_of(path: str) -> tuple[str, int, str]:
    """Returns a file's full path, its size and its time: what changes when the file does."""
    if is_remote(path):
        info = _remote(path).info(path)
        times = ("mtime", "LastModified", "updated", "last_modified", "created", "etag")
        return path, info["size"], str(next((info[key] for key in times if key in info), ""))
    native = _native(path)
    status = native.stat()
    return _as_text(str(native.resolve())), status.st_size, str(status.st_mtime_ns)


_UTF_8 = sys.getfilesystemencoding().lower() in ("utf-8", "utf8")


def _native(path: str) -> Path:
    """Returns a path as Python calls it here: a table's names are UTF-8 and a locale may not be."""
    if not _UTF_8:
        path = os.fsdecode(path.encode("utf-8", "surrogateescape"))
    return Path(path)


def _as_text(name: str) -> str:
    """Returns Python's name of a file as text that is the same in each locale."""
    return name if _UTF_8 else os.fsencode(name).decode("utf-8", "surrogateescape")


def _remote(path: str) -> Any:
    """Returns fsspec's file system for a path; it keeps one for each store."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:  # the store's package, or no such store
        store, reason = path.partition("://")[0], " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{store}://: cannot be opened: {reason}.") from error


class FileSource:
    """Records that are image files, each with its label."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        files: Sequence[tuple[str, Label]],
        class_names: tuple[str, ...],
        name: str,
        *,
        multi_label: bool = False,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        """`files` are paths, absolute or relative to `root` with "/", and their labels.

        `left_out` says how many other files there are, by the reason.
        """
        self.left_out = {os.fspath(root): left_out} if left_out else {}
        self._root, self._files = os.fspath(root), files
        self.class_names, self.name, self.multi_label = class_names, name, multi_label

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = operator.index(index)
        return Record(image=read_file(self.describe(index)), label=self.label(index))

    def label(self, index: int) -> Label:
        """Returns the class, or the classes, of an image."""
        return self._files[index][1]

    def key(self, index: int) -> str:
        """Returns the path of an image as its dataset has it."""
        return self._files[index][0]

    def describe(self, index: int) -> str:
        """Returns the path of an image."""
        return join(self._root, self._files[index][0])

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the paths, the labels, and the sizes of at most `SIZED` files."""
        files = [self._files[index] for index in indices]
        every = -(-len(files) // SIZED) or 1
        return {
            "names": [path.replace(os.sep, "/") for path, _ in files],
            "labels": [label for _, label in files],
            "sizes": _sizes([join(self._root, path) for path, _ in files[::every]]),
        }


def _sizes(paths: Sequence[str]) -> list[int | None]:
    """Returns the sizes of local files, None for one that is gone or in an object store."""
    with ThreadPoolExecutor(16) as pool:  # a network's folder answers one question in 1 ms
        return list(pool.map(_size, paths))


def _size(path: str) -> int | None:
    try:
        return None if is_remote(path) else os.stat(path).st_size  # noqa: PTH116, as `read_file`
    except (OSError, ValueError):  # a NUL
        return None


def is_inside(root: str, path: str) -> bool:
    """Returns whether a path, absolute or relative to a folder, is in that folder.

    A link in the folder is in it, wherever it leads; `link/..` is where the link leads.
    """
    path = join(root, path)
    if is_remote(root) or is_remote(path):
        (scheme, _, outer), (other, _, inner) = (place.partition("://") for place in (root, path))
        same = scheme == other and "::" not in path  # fsspec chains stores by it
        return same and _is_below(posixpath.normpath(outer), posixpath.normpath(inner))
    try:
        places = [os.path.abspath(place) for place in (root, path)]  # noqa: PTH100, keeps links
        if ".." not in path.split("/") and _is_below(*places):
            return True
        return _is_below(os.path.realpath(root), os.path.realpath(path))
    except ValueError:  # a NUL
        return False


def _is_below(outer: str, inner: str) -> bool:
    outer, inner = (place.replace(os.sep, "/").rstrip("/") for place in (outer, inner))
    return inner.startswith(f"{outer}/")


def join(root: str, path: str) -> str:
    """Returns a path in a folder, or `path` itself where it is absolute or an object store's."""
    if is_remote(path) or path.startswith("/") or Path(path).is_absolute():
        return path
    return f"{root.rstrip('/')}/{path}"

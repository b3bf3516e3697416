"""Tar shards in WebDataset's layout, read at random: each archive is indexed once.

Members whose names are equal up to the first dot of the last part are one example: KEY.jpg (or
another image) and KEY.cls, its class; what else there is, KEY.json or KEY.txt, is passed over.
Nothing is ever unpacked to disk, so a member's name cannot lead anywhere.
"""

from __future__ import annotations

import hashlib
import json
import operator
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Label, Record, UserError
from vitswin_jax.data.channels import ARRAY_SUFFIX
from vitswin_jax.data.sources.files import (
    file_paths,
    is_file,
    is_folder,
    is_image,
    open_file,
    read_file,
    read_text,
    version_of,
)
from vitswin_jax.data.sources.labels import listed, number_classes, parse_label
from vitswin_jax.data.sources.patterns import by_split, expand
from vitswin_jax.data.sources.splits import Dataset, dataset_of

log = logger(__name__)

SUFFIX, COMPRESSED = ".tar", (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
NAMES = "classes.txt"

_CLASS = ".cls"
_INDEX_VERSION = 1  # of the files in the cache; another layout gets another number


class Member(NamedTuple):
    """An example in an archive: where the bytes of its image are, and its label as written."""

    key: str
    start: int
    size: int
    label: str


def holds_shards(folder: str) -> bool:
    """Returns whether a folder has tar archives in it."""
    return any(path.endswith(SUFFIX) for path in file_paths(folder, deep=False))


def open_shards(pattern: str) -> Dataset:
    """Returns shards as a dataset: a pattern that names them, or the folder that they are in.

    Their splits are by their names, "imagenet-train-0001.tar". The classes are the lines of a
    `classes.txt` beside them, which a .cls then names or numbers; without one, those that occur,
    sorted. Several classes of an image stand in one .cls, "cat;indoors".

    Raises UserError that names an archive that is compressed or damaged, or the examples in it
    that lack a member, and the classes that only other splits than "train" have.
    """
    if pattern.endswith(COMPRESSED):
        raise UserError(
            f"{pattern}: a compressed archive cannot be read in any order; decompress it to .tar."
        )
    if is_folder(pattern):
        inside = file_paths(pattern, deep=False)
        files = [f"{pattern.rstrip('/')}/{name}" for name in inside if name.endswith(SUFFIX)]
    else:
        files = expand(pattern)
    groups = by_split(files, pattern)
    with ThreadPoolExecutor() as pool:
        indices = dict(zip(files, pool.map(index_archive, files), strict=True))
    path = f"{files[0].rpartition('/')[0] or '.'}/{NAMES}"
    known = None
    if is_file(path):
        known = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    labels = {m.label: parse_label(m.label) for index in indices.values() for m in index}
    written = {name for classes in labels.values() for name in classes}
    names, numbers = number_classes(written, known, pattern)
    multi_label = any(len(classes) > 1 for classes in labels.values())
    numbered = {
        text: tuple(sorted(numbers[name] for name in classes)) for text, classes in labels.items()
    }
    sources = {
        split: ShardSource(
            archives,
            [indices[archive] for archive in archives],
            {text: classes if multi_label else classes[0] for text, classes in numbered.items()},
            class_names=names,
            name=f"{pattern}:{split}",
            multi_label=multi_label,
        )
        for split, archives in groups.items()
    }
    return dataset_of(pattern, sources)


class ShardSource:
    """The examples of some archives, one archive after the other."""

    def __init__(
        self,
        archives: Sequence[str],
        indices: Sequence[Sequence[Member]],
        labels: dict[str, Label],
        *,
        class_names: tuple[str, ...],
        name: str,
        multi_label: bool,
    ) -> None:
        """`labels` gives the number, or numbers, of what members have as their label."""
        self._places = [
            (archive, member)
            for archive, index in zip(archives, indices, strict=True)
            for member in index
        ]
        self._labels = labels
        self.class_names, self.name, self.multi_label = class_names, name, multi_label

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = operator.index(index)
        archive, member = self._places[index]
        image = read_file(archive, start=member.start, stop=member.start + member.size)
        return Record(image=image, label=self.label(index))

    def label(self, index: int) -> Label:
        """Returns the class, or the classes, of an example."""
        return self._labels[self._places[index][1].label]

    def key(self, index: int) -> str:
        """Returns the name of an example's archive and its key."""
        archive, member = self._places[index]
        return f"{archive.rpartition('/')[2]}/{member.key}"

    def describe(self, index: int) -> str:
        """Returns the path of an archive and the key in it."""
        archive, member = self._places[index]
        return f"{archive}/{member.key}"

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the keys, the labels and the sizes of examples."""
        return {
            "names": [self.key(index) for index in indices],
            "labels": [self.label(index) for index in indices],
            "sizes": [self._places[index][1].size for index in indices],
        }


def index_archive(path: str) -> list[Member]:
    """Returns the examples of an archive in their order, from the user's cache where it has them.

    The archive is read whole once, its headers at least; a file in the cache directory, named by
    the archive's path, size and time, then serves every later run.
    """
    try:
        version = json.dumps([_INDEX_VERSION, *version_of(path)])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    name = hashlib.blake2b(version.encode(), digest_size=16).hexdigest()
    cached = cache_dir() / "shards" / f"{name}.json"
    try:
        return [Member(*fields) for fields in json.loads(cached.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # not there yet, or left damaged by someone's hand
        members = _index(path)
    _remember(cached, members)
    return members


def _remember(cached: Path, members: Sequence[Member]) -> None:
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as temporary:
            temporary.write_text(json.dumps(members), encoding="utf-8")
    except (OSError, UserError) as error:  # a home that cannot be written costs time, no more
        log.warning("the index of shards is not kept: %s", error)


def _index(path: str) -> list[Member]:
    images: dict[str, tuple[int, int]] = {}
    arrays: dict[str, tuple[int, int]] = {}  # images where there are no pictures
    labels: dict[str, str] = {}
    wrong = []
    try:
        with (
            open_file(path) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive,
        ):
            for member in archive:
                folder, slash, last = member.name.rpartition("/")
                stem, dot, suffix = last.partition(".")
                key, suffix = f"{folder}{slash}{stem}", f"{dot}{suffix}"
                known = suffix in (_CLASS, ARRAY_SUFFIX) or is_image(f"x{suffix}")
                if member.isdir() or not known:
                    continue
                found = arrays if suffix == ARRAY_SUFFIX else images
                if not member.isreg() or member.issparse():
                    wrong.append(f"{member.name} is a link or no plain file")
                elif key in (labels if suffix == _CLASS else found):
                    wrong.append(f"{key} has two {'labels' if suffix == _CLASS else 'images'}")
                elif suffix == _CLASS:
                    text = archive.extractfile(member)
                    assert text is not None  # as a plain file has content
                    labels[key] = text.read().decode().strip()
                else:
                    found[key] = (member.offset_data, member.size)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise UserError(f"{path}: is damaged, or no tar archive: {error}.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    images = images or arrays
    wrong += [f"{key} has no image" for key in labels if key not in images]
    wrong += [f"{key} has no {_CLASS}" for key in images if key not in labels]
    wrong += [f"{key}{_CLASS} names no class" for key in labels if not parse_label(labels[key])]
    if wrong or not images:
        told = listed(wrong) or "holds no KEY.jpg with its KEY.cls"
        raise UserError(
            f"{path}: {told}; an example must have an image and a {_CLASS} of the same name."
        )
    return [Member(key, *place, labels[key]) for key, place in images.items()]

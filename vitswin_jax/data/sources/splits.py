"""Splits by name, by slice and by a held-out fraction, for every source except TFDS.

Who belongs to a slice or is held out is decided by a hash of each record's key, never by its place:
the files of a folder lie class by class, so that its first tenth would be its first classes. Nor
does the order in which files are listed, the machine or the folder's place change anything.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Label, Record, Source, UserError
from vitswin_jax.data.sources.labels import check_trained, listed, present_classes

log = logger(__name__)

TRAIN, HELD_OUT, ALL = "train", ("test", "val", "validation"), "all"

SPELLINGS = {
    "train": TRAIN,
    "training": TRAIN,
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "validation",
}
"""What folders and files of splits are called, in small letters or capitals -> the split."""

_BOUND = r"(-?\d+|-?\d+(?:\.\d+)?%)?"
_SLICE = re.compile(rf"([^\[\]]+)(?:\[{_BOUND}:{_BOUND}\])?")


@dataclass(frozen=True)
class Dataset:
    """A dataset before a split of it is chosen: what opens each split; ALL alone if undivided."""

    name: str
    splits: Mapping[str, Callable[[], Source]]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits it is divided into, or those that holding out makes."""
        return (TRAIN, HELD_OUT[0]) if ALL in self.splits else tuple(self.splits)

    def open(self, split: str, *, holdout: float, seed: int) -> Source:
        """Returns a split, such as "train", "train[:90%]" or "test[:500]".

        "test", "val" and "validation" stand for one another where only one of them is
        there. Where the dataset is undivided, the part `holdout` of each class is held out
        from "train", for any of the three, in the order of a hash of `seed` and the keys, so
        one that comes or goes moves one other at most; "all" is everything.

        A slice's bounds are counts or percentages, from the end where negative, of the
        split's records in the order of another such hash. Slices that meet are disjoint,
        and cover the split.

        Raises UserError where there is no such split or nothing in it. A part to train on
        that leaves classes out is logged: few images may be wanted to try something out.
        """
        matched = _SLICE.fullmatch(split)
        if not matched:
            raise UserError(
                f"{self.name}: the split {split!r} is not written as NAME or NAME[FROM:TO] with "
                "counts or percentages, such as 'train[:90%]'."
            )
        name, start, stop = matched.groups()
        source = self._named(name, holdout=holdout, seed=seed)
        if "[" not in split:
            return source
        first, last = (
            _bound(bound, len(source), default, f"{self.name}:{split}")
            for bound, default in ((start, 0), (stop, len(source)))
        )
        if first >= last:
            raise UserError(f"{self.name}:{split}: is empty; {source.name} has {len(source)}.")
        ranks = [_hash(f"slice:{seed}:{source.key(i)}") for i in range(len(source))]
        chosen = np.argsort(np.array(ranks, np.uint64), kind="stable")[first:last]
        part = Subset(source, np.sort(chosen), name=f"{self.name}:{split}")
        absent = sorted(present_classes(source) - present_classes(part))
        if absent and name in (TRAIN, ALL):
            names = listed([source.class_names[label] for label in absent])
            log.warning("%s: has no example of %d class(es): %s", part.name, len(absent), names)
        return part

    def _named(self, name: str, *, holdout: float, seed: int) -> Source:
        if name in self.splits:
            return self.splits[name]()
        if ALL in self.splits and name in (TRAIN, *HELD_OUT):
            whole = self.splits[ALL]()
            return _divide(whole, self.name, name, holdout=holdout, seed=seed)
        if ALL in self.splits:
            raise UserError(
                f"{self.name}: no split {name!r}; a dataset that is divided by holdout has "
                f"{TRAIN}, {', '.join(HELD_OUT)} (all the held-out part) and {ALL}."
            )
        held_out = [split for split in self.splits if split in HELD_OUT]
        if name in HELD_OUT and len(held_out) == 1:
            return self.splits[held_out[0]]()
        only = next(iter(self.splits))
        hint = f"; cut that: {only}[:75%] and {only}[75%:]" if len(self.splits) == 1 else ""
        raise UserError(
            f"{self.name}: no split {name!r}; there are {', '.join(self.splits)}{hint}."
        )


def dataset_of(name: str, sources: Mapping[str, Source]) -> Dataset:
    """Returns opened splits as a dataset; raises UserError unless "train" has every class."""
    if TRAIN in sources:
        check_trained(sources[TRAIN], sources)
    return Dataset(name, {s: functools.partial(sources.__getitem__, s) for s in sources})


class Subset:
    """Some records of a source, in the source's order."""

    def __init__(self, source: Source, indices: np.ndarray, *, name: str) -> None:
        self._source, self._indices, self.name = source, indices, name
        self.class_names, self.multi_label = source.class_names, source.multi_label
        self.left_out = getattr(source, "left_out", {})

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self._source[int(self._indices[operator.index(index)])]

    def label(self, index: int) -> Label:
        """Returns the label of a record."""
        return self._source.label(int(self._indices[index]))

    def key(self, index: int) -> str:
        """Returns the source's key of a record."""
        return self._source.key(int(self._indices[index]))

    def describe(self, index: int) -> str:
        """Returns the name of a record in its source."""
        return self._source.describe(int(self._indices[index]))

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the facts of the source about records."""
        return self._source.facts(self._indices[np.asarray(indices, int)].tolist())


def _hash(text: str) -> int:
    # One spelling of a name on every system: macOS takes accents apart, Windows has "\".
    text = unicodedata.normalize("NFC", text.replace(os.sep, "/"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _bound(bound: str | None, length: int, default: int, name: str) -> int:
    """Returns a slice's bound as a count from the start."""
    if bound is None:
        return default
    if bound.endswith("%"):
        share = float(bound[:-1]) / 100
        count, most = round(share * length), 1.0
    else:
        share = count = int(bound)
        most = length
    if abs(share) > most:
        raise UserError(f"{name}: {bound} is more than the {length:,} records.")
    return count + length if bound.startswith("-") else count


def _divide(whole: Source, dataset: str, split: str, *, holdout: float, seed: int) -> Source:
    """Returns the training part, or the held-out part, of an undivided dataset.

    Of each class, or of each set of labels, the records with the lowest hashes are held out: that
    part of them, rounded, but at least one and not all of several.
    """
    if not 0 < holdout < 1:
        raise UserError(f"{dataset}: holdout={holdout} must be a fraction above 0 and below 1.")
    members: dict[Label, list[int]] = {}
    for index in range(len(whole)):
        members.setdefault(whole.label(index), []).append(index)
    held_out = np.zeros(len(whole), bool)
    for indices in members.values():
        if len(indices) > 1:
            count = min(max(round(holdout * len(indices)), 1), len(indices) - 1)
            hashes = np.array([_hash(f"{seed}:{whole.key(i)}") for i in indices], np.uint64)
            held_out[np.array(indices)[np.argsort(hashes, kind="stable")[:count]]] = True
    chosen = np.flatnonzero(held_out if split != TRAIN else ~held_out)
    part = Subset(whole, chosen, name=f"{dataset}:{split}")
    if not len(part):
        raise UserError(
            f"{dataset}: no image can be held out, because no class has two; add images, or make "
            "a test split."
        )
    return part

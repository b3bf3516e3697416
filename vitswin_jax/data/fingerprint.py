"""Fingerprints of data: facts about the splits of a run, so that a resume notices changes."""

from __future__ import annotations

import collections
import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from vitswin_jax.core.types import Source, listed
from vitswin_jax.data.sources.labels import classes_of

LABELS = "labels"
CHANGED = {
    "names": "images have other names or another order",
    LABELS: "images have other labels",
    "sizes": "files have other sizes",
    "version": "it is another dataset or version",
    "shares": "the parts of the mixture have other weights",
}
"""Column of `Source.facts` -> what a message says where it changed."""

_SHOWN = 3  # classes in a message, of those whose number of images changed


def fingerprint(train: Source, test: Source) -> dict[str, Any]:
    """Returns the fingerprint of a run's two splits as plain data, to be kept as JSON.

    It has the names of the classes; and of each split the number of images, that of each class,
    and a digest of each column of `Source.facts`. No image is read. The place of the data is not
    in it: a folder that was moved has the same fingerprint.
    """
    return {
        "classes": list(train.class_names),
        "train": _of_split(train),
        "test": _of_split(test),
    }


def _of_split(source: Source) -> dict[str, Any]:
    facts = source.facts(range(len(source)))
    counts = collections.Counter(c for label in facts.get(LABELS, ()) for c in classes_of(label))
    return {
        "images": len(source),
        "per_class": [counts[label] for label in range(len(source.class_names))] if counts else [],
        "digests": {name: _digest(column) for name, column in facts.items()},
    }


def _digest(column: Sequence[Any]) -> str:
    text = "\0".join(map(str, column))
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)  # macOS takes accents apart
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any], since: str) -> str:
    """Returns the changes from one fingerprint to another as text; "" if there are none.

    >>> split = {"images": 2, "per_class": [1, 1], "digests": {}}
    >>> now = {"classes": ["a", "b"], "train": split, "test": split}
    >>> before = now | {"train": {"images": 3, "per_class": [2, 1], "digests": {}}}
    >>> changes(before, now, "step 9")
    "its training data changed since step 9: 3 images, now 2; 'a' had 2 images, now 1"
    """
    classes = _class_changes(before["classes"], now["classes"])
    told = []
    for split, what in (("train", "training"), ("test", "test")):
        lines = _split_changes(before, now, split)
        if split == "train":
            lines[1:1] = classes
        if lines:
            told.append(f"its {what} data changed since {since}: {'; '.join(lines)}")
    return "; ".join(told)


def _class_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    added, gone = (
        [repr(name) for name in names if name not in others]
        for names, others in ((now, set(before)), (before, set(now)))
    )
    parts = [f"{listed(n)} {what}" for n, what in ((added, "added"), (gone, "removed")) if n]
    if parts:
        return [f"classes {', '.join(parts)}"]
    return ["the classes are in another order"] * (list(before) != list(now))


def _split_changes(before: Mapping[str, Any], now: Mapping[str, Any], split: str) -> list[str]:
    """Returns the changes of a split: first its number of images, then those of its classes."""
    theirs, ours = before[split], now[split]
    had, has = (
        dict(zip(data["classes"], data[split]["per_class"], strict=False)) for data in (before, now)
    )
    changed = [name for name in had if name in has and had[name] != has[name]]
    counts = [f"{name!r} had {had[name]:,} images, now {has[name]:,}" for name in changed]
    if len(counts) > _SHOWN:
        counts[_SHOWN:] = [f"{len(counts) - _SHOWN} more classes have other numbers of images"]
    if theirs["images"] != ours["images"]:
        return [f"{theirs['images']:,} images, now {ours['images']:,}", *counts]
    if counts or before["classes"] != now["classes"]:
        return counts
    columns = [name for name in CHANGED if theirs["digests"].get(name) != ours["digests"].get(name)]
    return [CHANGED[name] for name in columns]

"""The published checkpoints by name: address, model and preprocessing of each.

The table itself is `published.txt`, whose head says what its columns are; every address, digest and
number in it stands in the originals' own documents. A name is `collection/file`, without the
suffix, and with the folder where two files are called the same; a beginning that only one file has
is as good: `deit/deit_tiny_patch16_224`. `augreg/L/16` is not, for the L/16 that Google recommends
and the one that timm took are different files.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from vitswin_jax.core.types import UserError
from vitswin_jax.models.names import nearest_name
from vitswin_jax.weights.sources.source import HALF, IMAGENET

CLASS_LISTS: dict[str, int] = {
    "imagenet1k": 1000,
    "imagenet21k": 21843,  # Google's
    "imagenet22k": 21841,  # Microsoft's
    "none": 0,
}
"""What a head's outputs are -> how many."""

CLASS_NAMES = {"imagenet1k": "imagenet1k.txt"}
"""What the outputs of a head are called: ILSVRC 2012's synsets, in order, each with its words of
WordNet 3.0. The other lists have no names here."""

# TensorFlow's "area" is Pillow's box.
IMAGES: dict[str, Mapping[str, Any]] = {
    "half": HALF | {"crop_fraction": 0.9},  # timm, at 224
    "half-whole": HALF | {"crop_fraction": 1.0},  # timm, at 384
    "bv": HALF | {"crop_fraction": 0.875, "interpolation": "box"},  # resize_small(256)
    "bv384": HALF | {"crop_fraction": 384 / 448, "interpolation": "box"},  # configs/transfer.py
    "siglip": HALF | {"crop_fraction": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    "imagenet": IMAGENET | {"crop_fraction": 0.875},
    "imagenet-90": IMAGENET | {"crop_fraction": 0.9},
    "imagenet-whole": IMAGENET | {"crop_fraction": 1.0},
    "imagenet-squash": IMAGENET | {"crop_fraction": 1.0, "crop_mode": "squash"},
}
"""How images are given to a model: the fields of `Preprocess`, but for the size."""

_TIMM = "huggingface/pytorch-image-models:results/results-imagenet.csv"
_SHOWN = 8  # candidates in a message


@dataclass(frozen=True)
class Published:
    """One published file."""

    name: str
    address: str
    file: str
    variant: str
    class_list: str
    images: Mapping[str, Any]
    """As in `IMAGES`."""
    document: str
    """Whose words this is: a repository of GitHub's and a path in it."""
    top1: float | None
    """On ImageNet-1k's validation set, in percent."""
    top1_by: str | None
    """The document that says so."""
    digest: str | None
    """`sha256:` or `md5:` and as many digits as were published."""

    @property
    def collection(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    @property
    def num_classes(self) -> int:
        """The outputs of the head; 0: no head."""
        return CLASS_LISTS[self.class_list]


@functools.cache
def published() -> Mapping[str, Published]:
    """Returns the table: name -> file."""
    rows = list(_rows(Path(__file__).with_name("published.txt").read_text(encoding="utf-8")))
    stems = Counter((collection, _stem(place)) for collection, place, *_ in rows)
    table = {}
    for collection, place, base, document, columns in rows:
        variant, class_list, images, top1, by, digest = columns
        stem = _stem(place)
        folder = place.rpartition("/")[0] + "/" if stems[collection, stem] > 1 else ""
        name = f"{collection}/{folder}{stem}"
        table[name] = Published(
            name=name,
            address=base + quote(place),
            file=PurePosixPath(place).name,
            variant=variant,
            class_list=class_list,
            images=IMAGES[images],
            document=document,
            top1=None if top1 == "-" else float(top1),
            top1_by={"-": None, "own": document, "timm": _TIMM}[by],
            digest=None if digest == "-" else digest,
        )
    return table


def find_published(name: str) -> Published | None:
    """Returns the file of that name, or of the beginning of one; None: of no collection.

    Raises UserError, with the candidates or the nearest name, where it is not just one file's.
    """
    table = published()
    if name in table:
        return table[name]
    collection, _, word = name.removesuffix(".npz").removesuffix(".pth").partition("/")
    rows = [row for row in table.values() if row.collection == collection]
    if not rows:
        return None
    word = word.replace("/", "_")  # L/16 is L_16 in a file's name
    files = {row.name: row.name.rpartition("/")[2] for row in rows}
    beginning = re.escape(word) + "(?![A-Za-z0-9])"
    found = [row for row in rows if files[row.name] == word] or [
        row for row in rows if word and re.match(beginning, files[row.name])
    ]
    if len(found) == 1:
        return found[0]
    if found:
        more = f", ... ({len(found)} in all)" if len(found) > _SHOWN else ""
        raise UserError(
            f"{name} is the name of several files: "
            f"{', '.join(row.name for row in found[:_SHOWN])}{more}; give one of them."
        )
    raise UserError(
        f"{name}: no such file, and no published weights of that name{near_published(name)}"
    )


def near_published(name: str) -> str:
    """Returns `; did you mean 'x'?` for the nearest name of the table, or where they are listed."""
    return nearest_name(name, published()) or "; `vitswin models --sources` lists what is."


def _rows(text: str) -> Iterator[tuple[str, str, str, str, list[str]]]:
    """Yields (collection, place, base, document, the other columns) of each row."""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0].startswith("["):
            collection, base, document = words[0].strip("[]"), *words[1:]
        else:
            yield collection, words[0], base, document, words[1:]


def _stem(place: str) -> str:
    name = PurePosixPath(place).name
    return name[: name.rindex(".")]


@functools.cache
def class_names(class_list: str | None) -> tuple[str, ...] | None:
    """Returns the names of the classes of a list, or None for a list without names.

    For people to read: datasets name the same classes otherwise, most of them by synset.
    """
    if class_list not in CLASS_NAMES:
        return None
    lines = (
        Path(__file__).with_name(CLASS_NAMES[class_list]).read_text(encoding="utf-8").splitlines()
    )
    return tuple(line.partition(" ")[2] for line in lines)


@functools.cache
def synsets() -> tuple[str, ...]:
    """Returns WordNet's identifiers of ImageNet-1k's classes, "n01440764" and so on, in order."""
    lines = (
        Path(__file__).with_name(CLASS_NAMES["imagenet1k"]).read_text(encoding="utf-8").splitlines()
    )
    return tuple(line.partition(" ")[0] for line in lines)

"""A model's outputs and a dataset's classes, matched; ImageNet's classes by all their names."""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float

from vitswin_jax.core.types import Record, Source, UserError
from vitswin_jax.data.sources.files import read_text
from vitswin_jax.data.sources.labels import listed
from vitswin_jax.data.sources.splits import Subset
from vitswin_jax.weights.published import class_names, synsets
from vitswin_jax.weights.sources.swin import imagenet_22k_to_1k

_MICROSOFT_22K = 21841
_VALIDATION_IMAGES = 50_000
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_IN_BRACKETS = re.compile(r".* \((n\d{8})\)")  # what a folder adds to one of two equal names


@dataclass(frozen=True)
class Match:
    """The outputs of a model that are the classes of a dataset."""

    columns: tuple[int, ...] | None  # the output of each class; None: they are in order
    class_names: tuple[str, ...]  # what the dataset's classes are called
    note: str | None = None  # what a reader of the score has to know
    validation: bool = True  # whether images and labels may be ImageNet's validation set

    def select(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n c"]:
        """Returns the logits of the dataset's classes, in its order."""
        return logits if self.columns is None else logits[:, list(self.columns)]


def match_classes(names: Sequence[str] | None, num_classes: int, source: Source) -> Match:
    """Returns the indices of a dataset's classes among a model's outputs.

    `names` is what the outputs are called, None where nobody knows. Classes are matched by name;
    ImageNet-1k's also by synset, and by number, as ImageNet-V2's folders are called (Recht et al.
    2019, github.com/modestyachts/ImageNetV2), for models of its 1,000 classes or of Microsoft's
    21,841. A dataset of some of ImageNet's classes is scored among these alone, as those of
    ImageNet-A and ImageNet-R are by their authors (Hendrycks et al., arXiv:1907.07174 and
    2006.16241).

    Raises UserError where a class of the dataset has no output, and where the model, or the
    dataset, has others that are not ImageNet's.
    """
    theirs = tuple(source.class_names)
    if names is not None and tuple(names) == theirs:
        return Match(None, theirs)
    outputs = _imagenet_outputs(names, num_classes)
    numbers, by_number = _imagenet_numbers(theirs), False
    if outputs and numbers is None:
        numbers, by_number = _written_numbers(theirs), True
    if outputs and numbers is not None:
        reassessed = isinstance(source, Reassessed)
        return _match_imagenet(outputs, numbers, by_number=by_number, reassessed=reassessed)
    if names is None:
        if num_classes != len(theirs):
            raise UserError(
                f"{source.name}: has {len(theirs)} classes, but the weights have {num_classes}; "
                "--knn, --linear-probe and --few-shot work with any classes."
            )
        return Match(None, theirs, _note_on_numbers(theirs))
    if differing := sorted(set(names) ^ set(theirs)):
        raise UserError(
            f"{source.name}: has {len(theirs)} classes, the weights {len(names)}; not in both "
            f"are {listed(differing)}."
        )
    return Match(tuple(names.index(name) for name in theirs), theirs)


def _note_on_numbers(folders: Sequence[str]) -> str | None:
    """Returns a line where weights without names of classes meet folders that are numbers.

    Text sorts 10 before 2, as torchvision does; timm sorts numbers by their size.
    """
    if not all(name.isdecimal() for name in folders):
        return None
    if list(folders) == sorted(folders, key=int):
        return None
    return (
        "the weights do not name their classes, and the folders are numbers: they are taken in the "
        f"order of their text, {', '.join(folders[:4])}, ..., as torchvision does; timm takes them "
        "in the order of the numbers"
    )


def _match_imagenet(
    outputs: Mapping[int, int], numbers: Sequence[int], *, by_number: bool, reassessed: bool
) -> Match:
    called = class_names("imagenet1k") or ()
    notes = ["right is any of an image's labels"] if reassessed else []
    if by_number:
        notes.append("the folders are ImageNet's class numbers, as ImageNet-V2's are")
    if len(numbers) < len(called):
        notes.append(
            f"scored among the {len(numbers)} of {len(called):,} classes that the dataset has, "
            "as ImageNet-A and ImageNet-R are"
        )
    columns = tuple(outputs[number] for number in numbers)
    return Match(
        None if columns == tuple(range(len(outputs))) else columns,
        tuple(called[number] for number in numbers),
        "; ".join(notes) or None,
        validation=not (by_number or reassessed),
    )


def _imagenet_outputs(names: Sequence[str] | None, num_classes: int) -> Mapping[int, int] | None:
    """Returns the output of each of ImageNet-1k's classes, None where a model is not of these."""
    if names is None and num_classes == len(synsets()):
        return {number: number for number in range(num_classes)}
    if names is None and num_classes == _MICROSOFT_22K:
        return dict(enumerate(imagenet_22k_to_1k()))
    numbers = None if names is None else _imagenet_numbers(names)
    if numbers is None or len(numbers) < len(synsets()):
        return None
    return {number: output for output, number in enumerate(numbers)}


@functools.cache
def _number_of() -> Mapping[str, int]:
    """Returns the number of each class by its synset and, where no two share them, its words."""
    words = class_names("imagenet1k") or ()
    by_words = {name: i for i, name in enumerate(words) if words.count(name) == 1}
    return by_words | {synset: number for number, synset in enumerate(synsets())}


def _imagenet_numbers(names: Sequence[str]) -> list[int] | None:
    """Returns the ImageNet-1k classes of these names, or None if a name is none of them."""
    if tuple(names) == class_names("imagenet1k"):  # two of them are called the same
        return list(range(len(names)))
    numbers = _number_of()
    written = (_IN_BRACKETS.sub(r"\1", name) for name in names)
    known = [numbers[name] for name in written if name in numbers]
    return known if len(set(known)) == len(names) else None


def _written_numbers(names: Sequence[str]) -> list[int] | None:
    """Returns classes that are called by their numbers, "0" to "999"."""
    numbers = {str(number): number for number in range(len(synsets()))}
    return [numbers[name] for name in names] if set(names) <= numbers.keys() else None


class Reassessed(Subset):
    """The validation images of ImageNet that have labels in ReaL, with these, one or several."""

    def __init__(self, source: Source, labels: Mapping[int, tuple[int, ...]]) -> None:
        """Takes the labels by the record's index in `source`."""
        indices = np.array(sorted(labels), int)
        super().__init__(source, indices, name=f"{source.name} with ReaL's labels")
        self.class_names, self.multi_label = synsets(), True
        self._labels = [labels[index] for index in indices.tolist()]

    def __getitem__(self, index: SupportsIndex) -> Record:
        record = super().__getitem__(index)
        return {**record, "label": self._labels[operator.index(index)]}

    def label(self, index: int) -> tuple[int, ...]:
        """Returns the labels of a record, in ImageNet's numbering."""
        return self._labels[index]


def reassess(source: Source, path: str) -> Reassessed:
    """Returns ImageNet's validation images with the labels of "Are we done with ImageNet?".

    `path` is its real.json (Beyer et al., arXiv:2006.07159;
    github.com/google-research/reassessed-imagenet): a list of class numbers for each of the 50,000
    images, by the number in a file's name. Images without any are left out, as there. Raises
    UserError for another file, and for images that are not called ILSVRC2012_val_NUMBER.
    """
    text = read_text(path)
    try:
        table = json.loads(text)
        whole = len(table) == _VALIDATION_IMAGES and all(
            number in range(len(synsets())) for row in table for number in row
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: is not ReaL's real.json ({error}).") from error
    if not whole:
        raise UserError(
            f"{path}: is not ReaL's real.json, which has a list of class numbers for each of "
            f"{_VALIDATION_IMAGES:,} images."
        )
    labels, strange = {}, []
    for index in range(len(source)):
        name = source.key(index).rpartition("/")[2]
        found = _VALIDATION_NAME.fullmatch(name)
        number = int(found[1]) - 1 if found else -1
        if not 0 <= number < _VALIDATION_IMAGES:
            strange.append(name)
        elif table[number]:
            labels[index] = tuple(sorted(table[number]))
    if strange:
        raise UserError(
            f"{source.name}: ReaL's labels are of ILSVRC2012_val_00000001.JPEG and so on, not of "
            f"{listed(strange)}."
        )
    if not labels:
        raise UserError(f"{source.name}: none of its images has a label in {path}.")
    return Reassessed(source, labels)

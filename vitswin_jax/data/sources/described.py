"""Descriptions of datasets that are not on this machine: the facts that a program depends on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

from vitswin_jax.core.types import Label, Record, UserError

KNOWN: dict[str, tuple[int, int]] = {
    "imagenet2012": (1000, 1_281_167),
    "imagenet21k": (21_843, 14_197_122),  # image-net.org's count of its images, fall 2011
    "imagenet22k": (21_841, 14_197_122),
    "cifar10": (10, 50_000),
    "cifar100": (100, 50_000),
    "oxford_iiit_pet": (37, 3_680),
    "oxford_flowers102": (102, 1_020),
}
"""The recipes' datasets: classes, and images to train on (TFDS's catalogue, but for the two)."""
LENGTH = KNOWN["imagenet2012"][1]
"""Of a dataset of which only the classes are given: the schedule's numbers come from it."""


class Numbered:
    """Records of a source that are known by their numbers."""

    name: str

    def key(self, index: int) -> str:
        """Returns the number of a record."""
        return str(index)

    def describe(self, index: int) -> str:
        """Returns the name and the number of a record, "cifar10:test[12]"."""
        return f"{self.name}[{index}]"

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns nothing: the records are numbers."""
        del indices
        return {}


class DescribedSource(Numbered):
    """A source without images: it has a length and classes, with as many images each."""

    multi_label = False

    def __init__(self, name: str, *, classes: int, length: int) -> None:
        """`name` is what messages call it."""
        self.name, self._length = name, length
        self.class_names = tuple(map(str, range(classes)))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Record:
        raise UserError(f"{self.name} is described and not here: it has no images.")

    def label(self, index: int) -> Label:
        """Returns a class, each in its turn."""
        return operator.index(index) % len(self.class_names)


def describe_source(
    dataset: str, *, split: str, classes: int | None = None
) -> DescribedSource | None:
    """Returns a split of a dataset with so many classes, or as `KNOWN` has it; None for others."""
    if classes is None and dataset not in KNOWN:
        return None
    known, length = KNOWN.get(dataset, (0, LENGTH))
    return DescribedSource(f"{dataset}:{split}", classes=classes or known, length=length)

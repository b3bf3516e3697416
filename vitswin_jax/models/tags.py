"""timm's tags: the weights of each variant, their number of classes and their preprocessing.

The table is `tags.txt`, whose head says what its columns are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tag:
    """The facts of timm's pretrained configuration of some weights."""

    num_classes: int
    """0: the weights have no head."""
    statistics: str
    """What the mean and the standard deviation are of: a key of `preprocess.STATISTICS`."""
    crop_fraction: float
    crop_mode: str
    interpolation: str


@functools.cache
def _table() -> Mapping[str, Mapping[str, Tag]]:
    table: dict[str, dict[str, Tag]] = {}
    for line in Path(__file__).with_name("tags.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        variant, classes, statistics, crop, mode, interpolation, *tags = line.split()
        row = Tag(int(classes), statistics, float(crop), mode, interpolation)
        table.setdefault(variant, {}).update(dict.fromkeys(tags, row))
    return table


def tags_of(variant: str) -> Mapping[str, Tag]:
    """Returns the tags of a variant, its default first; none where timm has no such model."""
    return _table().get(variant, {})

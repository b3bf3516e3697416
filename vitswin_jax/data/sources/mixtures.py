"""Mixtures of datasets with weights, "0.7*./flowers + 0.3*oxford_flowers102"."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, SupportsIndex

import numpy as np

from vitswin_jax.core.types import Label, Record, Source, UserError

_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*\*\s*(\S.*?)\s*")


def is_mixture(dataset: str) -> bool:
    """Returns whether a dataset is written as a mixture: it begins with a weight and a star."""
    return bool(re.match(r"\s*[\d.]+\s*\*", dataset))


def parse_mixture(text: str) -> tuple[tuple[str, Fraction], ...]:
    """Returns the parts of "0.7*a + 0.3*b" and their shares, exact and with the sum 1.

    A plus with blanks round it divides the parts. Raises UserError where a part is not written
    as WEIGHT*DATASET, or weighs nothing.
    """
    texts = re.split(r"\s\+\s", text)
    parts = [(m[2], Fraction(m[1])) for m in map(_PART.fullmatch, texts) if m and Fraction(m[1])]
    if len(parts) < len(texts):
        raise UserError(
            f"{text}: a mixture is written as WEIGHT*DATASET + WEIGHT*DATASET with weights above "
            "0, such as '0.7*./mine + 0.3*cifar10'."
        )
    total = sum(weight for _, weight in parts)
    return tuple((part, weight / total) for part, weight in parts)


class MixtureSource:
    """The records of several sources, one source after the other, and each one's share.

    Read by number, as an evaluation does, every record of every part is there once, whatever the
    shares. Training draws from the parts by their shares instead, as `draw` says; its epoch is as
    many examples as all parts together have records.
    """

    def __init__(self, parts: Sequence[Source], shares: Sequence[Fraction], *, name: str) -> None:
        """`parts` have the same classes; `shares` add up to 1."""
        self.parts, self.name = tuple(parts), name
        scale = math.lcm(*(share.denominator for share in shares))
        self.weights = tuple(int(share * scale) for share in shares)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).tolist()
        self.class_names, self.multi_label = parts[0].class_names, parts[0].multi_label

    def __len__(self) -> int:
        return self.starts[-1]

    def _place(self, index: SupportsIndex) -> tuple[Source, int]:
        index = range(len(self))[operator.index(index)]
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - self.starts[part]

    def __getitem__(self, index: SupportsIndex) -> Record:
        source, place = self._place(index)
        return source[place]

    def label(self, index: int) -> Label:
        """Returns the label of a record."""
        source, place = self._place(index)
        return source.label(place)

    def key(self, index: int) -> str:
        """Returns the name of a part and what it calls a record."""
        source, place = self._place(index)
        return f"{source.name}/{source.key(place)}"

    def describe(self, index: int) -> str:
        """Returns the name of a record in its part."""
        source, place = self._place(index)
        return source.describe(place)

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the facts of the parts about records, one part after the other, and weights."""
        places = np.asarray(indices, int)
        columns: dict[str, list[Any]] = {"shares": list(self.weights)}
        for part, first, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            inside = places[(first <= places) & (places < end)] - first
            for name, column in part.facts(inside.tolist()).items():
                columns.setdefault(name, []).extend(column)
        return dict(columns)


def draw(position: int, weights: Sequence[int]) -> tuple[int, int]:
    """Returns the part of a mixture that example number `position` is of, and its index there.

    Of any first n examples a part gives n * weight / sum of weights, to within one for the first
    part and within two for the others of four: the first takes its share of the positions as
    evenly as whole numbers can be spread, and what is left is divided among the rest in the same
    way. No randomness is in it, so a run may resume at any position. Grain's own mixing does the
    same with weights rounded to about a hundredth; here shares are exact.
    """
    left = sum(weights)
    for part, weight in enumerate(weights):
        # How many of the first n positions are not this part's: n * (left - weight) // left.
        others, others_after = (n * (left - weight) // left for n in (position, position + 1))
        if others_after == others:
            return part, position - others
        position, left = others, left - weight
    raise ValueError(f"position={position} with weights={weights}: weights must be above 0.")

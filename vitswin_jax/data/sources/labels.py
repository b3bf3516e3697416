"""Labels: from the text of files to numbered classes, and the weight of each class."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Label, Source, UserError
from vitswin_jax.data.sources.mixtures import MixtureSource

SEPARATOR = ";"
"""Stands between the labels of an image that has several: "cat;indoors"."""

BALANCED = "balanced"

_SHOWN = 8


def listed(names: Collection[str]) -> str:
    """Returns names for a message: the first of them, and how many more there are."""
    more = f" ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(list(names)[:_SHOWN])}{more}"


def classes_of(label: Label) -> tuple[int, ...]:
    """Returns the classes of a label, one or several."""
    return label if isinstance(label, tuple) else (label,)


def parse_label(text: str) -> tuple[str, ...]:
    """Returns the classes that a label names, none where one of them is empty."""
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(SEPARATOR)))
    return parts if all(parts) else ()


def number_classes(
    written: Iterable[str], known: Sequence[str] | None, origin: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the classes' names, and the number of each class as files write it.

    `known` are the names, in their order, where a file lists them; a class is then written by
    its name or its number. Otherwise the classes are those that occur, sorted, as numbers
    where all are. Raises UserError, which begins with `origin`, for classes that are not known.
    """
    written = set(written)
    if known is None:
        numeric = all(text.isdecimal() for text in written)
        names = sorted(written, key=lambda text: (int(text) if numeric else 0, text))
        return tuple(names), {name: number for number, name in enumerate(names)}
    numbers = {str(number): number for number in range(len(known))}
    numbers |= {name: number for number, name in enumerate(known)}
    if unknown := sorted(written - numbers.keys()):
        raise UserError(f"{origin}: has no class {listed(unknown)} among its {len(known)}.")
    return tuple(known), numbers


def check_trained(train: Source, others: Mapping[str, Source]) -> None:
    """Raises UserError where a class has examples in another split and none in `train`."""
    here = present_classes(train)
    there = {name: present_classes(source) for name, source in others.items()}
    faults = Faults(
        f"{listed([train.class_names[label] for label in sorted(labels - here)])} in {name}"
        for name, labels in there.items()
        if labels - here
    )
    faults.check(f"{train.name}: has no example of classes that other splits have: ")


def present_classes(source: Source) -> set[int]:
    """Returns the classes that have examples in a source."""
    return {label for i in range(len(source)) for label in classes_of(source.label(i))}


def class_shares(source: Source) -> np.ndarray:
    """Returns the share of each class in a source, float64 (k,); the sum is 1.

    Of an image with several labels each class has an equal part, and a mixture's parts count by
    their shares.
    """
    if isinstance(source, MixtureSource):
        shares = [class_shares(part) for part in source.parts]
        return np.average(shares, axis=0, weights=source.weights)
    counts = np.zeros(len(source.class_names))
    for index in range(len(source)):
        classes = list(classes_of(source.label(index)))
        counts[classes] += 1 / len(classes)
    return counts / counts.sum()


def make_class_weights(source: Source, choice: object) -> tuple[float, ...] | None:
    """Returns the weight of each class in the loss of training, or None for equal ones.

    `choice` is None; "balanced", for weights inversely proportional to the classes' shares in
    `source`, so that each counts as much as any other; or a weight for each class. An example
    weighs what its class does, with several labels the mean of theirs, and weights are scaled
    so that the mean over the source's examples is 1: the learning rate keeps its meaning.

    Raises UserError for another choice, and for a class without examples to balance.
    """
    if choice is None:
        return None
    shares, names = class_shares(source), source.class_names
    if choice == BALANCED:
        if absent := [name for name, share in zip(names, shares, strict=True) if not share]:
            raise UserError(
                f"data.class_weights='{BALANCED}': {source.name} has no example of "
                f"{listed(absent)}; give a weight for each class instead."
            )
        return tuple((1 / (len(names) * shares)).tolist())
    numbers = isinstance(choice, tuple | list) and all(
        isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0
        for weight in choice
    )
    weights = np.asarray(choice if numbers else (), float)
    if len(weights) != len(names) or not weights @ shares > 0:
        raise UserError(
            f"data.class_weights={choice!r} must be None, '{BALANCED}', or {len(names)} numbers, "
            f"0 or more and not all 0, for the classes of {source.name}: {listed(names)}."
        )
    return tuple((weights / (weights @ shares)).tolist())

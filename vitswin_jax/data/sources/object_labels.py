"""The labels of examples in memory, of the forms that people have them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitswin_jax.core.types import Label, UserError
from vitswin_jax.data.sources.labels import number_classes

_MOST_CLASSES = 100_000
"""Without names, a larger label is taken for an identifier rather than a class."""


@dataclass(frozen=True)
class Labels:
    """A label for each example, and what the classes are called."""

    labels: Sequence[Label]
    class_names: tuple[str, ...]
    multi_label: bool


def read_labels(labels: Any, name: str, class_names: Sequence[str] | None) -> Labels:
    """Returns labels as numbered classes.

    They are whole numbers (n,) or (n, 1) from 0 on, names (n,), or 0 and 1 (n, k) for several
    classes an example. Raises UserError, which begins with `name`, for others.
    """
    known = None if class_names is None else tuple(map(str, class_names))
    if known is not None and len(set(known)) != len(known):
        raise UserError(f"{name}: class_names has a name twice.")
    try:
        if not hasattr(labels, "shape"):
            labels = [each if isinstance(each, str) else np.asarray(each) for each in labels]
        values = np.asarray(labels)
    except Exception as error:
        raise UserError(f"{name}: labels differ in shape, or are no array.") from error
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if not values.size:
        raise UserError(f"{name}: has no examples.")
    if values.ndim == 2 and values.dtype.kind in "buif":
        return _several(values, name, known)
    if values.ndim == 1 and values.dtype.kind in "ui":
        return _numbers(values, name, known)
    if values.ndim == 1 and all(isinstance(value, str) for value in values.tolist()):
        names, numbers = number_classes(values.tolist(), known, name)
        return Labels([numbers[value] for value in values.tolist()], names, multi_label=False)
    raise UserError(
        f"{name}: labels have shape {values.shape} and dtype {values.dtype}; they must be whole "
        "numbers (n,), names (n,), or 0 and 1 (n, classes)."
    )


def _numbers(values: np.ndarray, name: str, known: tuple[str, ...] | None) -> Labels:
    low, high = int(values.min()), int(values.max())
    most = _MOST_CLASSES if known is None else len(known)
    if low < 0 or high >= most:
        why = "give class_names" if known is None else f"there are {most:,} classes"
        raise UserError(
            f"{name}: labels run from {low:,} to {high:,}; they must be in [0, {most:,}): {why}."
        )
    names = known or tuple(map(str, range(high + 1)))
    return Labels(values.tolist(), names, multi_label=False)


def _several(values: np.ndarray, name: str, known: tuple[str, ...] | None) -> Labels:
    names = known or tuple(map(str, range(values.shape[1])))
    if values.shape[1] != len(names) or not np.isin(values, (0, 1)).all():
        raise UserError(
            f"{name}: labels have shape {values.shape}; several labels an image are 0 and 1, (n, "
            f"{len(names)}), one column for each class."
        )
    if len(without := np.flatnonzero(~values.any(1))):
        raise UserError(f"{name}: {len(without):,} images have no class, such as {without[0]}.")
    rows = [tuple(np.flatnonzero(row).tolist()) for row in values]
    return Labels(rows, names, multi_label=True)

"""The comparison of a measured accuracy with the published one."""

from __future__ import annotations

import dataclasses
import math

from vitswin_jax.data.augment.transforms import Preprocess

CLASSES, IMAGES = 1000, 50_000
"""Of ImageNet-1k's validation set, on which accuracies are published."""

_ROUNDING = 0.1  # percentage points: decoders and resizers differ by about as much


def compare_with_published(
    top1: float, published: float, images: int, *, used: Preprocess, theirs: Preprocess | None
) -> str:
    """Returns one line: as published, higher, or lower by how much, and why that may be.

    `top1` and `published` are in percent, `images` of the validation set's 50,000 were evaluated.
    What chance explains is two standard errors of the share that is right in so many images drawn
    of so many (Cochran 1977, section 3.2: none where all are), and 0.1 points. Where the accuracy
    is lower, the line names how images were given otherwise than in `theirs`, the preprocessing
    that it was published with.
    """
    share = published / 100
    left = max(0.0, (IMAGES - images) / (IMAGES - 1))
    chance = _ROUNDING + 200 * math.sqrt(share * (1 - share) / images * left)
    difference = top1 - published
    explained = f"{images:,} of its {IMAGES:,} images explain {chance:.2f} points"
    if abs(difference) <= chance:
        return f"as published: {top1:.2f} %, and {explained}"
    if difference > 0:
        return f"higher by {difference:.2f} points; {explained}"
    return f"lower by {-difference:.2f} points; {explained}; {_preprocessing(used, theirs)}"


def _preprocessing(used: Preprocess, theirs: Preprocess | None) -> str:
    if theirs is None:
        return "with which preprocessing it was published is not known"
    different = [
        f"{field.name} is {ours} here and {other} there"
        for field in dataclasses.fields(Preprocess)
        if (ours := getattr(used, field.name)) != (other := getattr(theirs, field.name))
    ]
    if not different:
        return "the preprocessing is the published one: look at images and labels"
    return f"preprocessed otherwise than published: {', '.join(different)}"

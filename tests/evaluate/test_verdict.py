"""Verdicts on accuracies; what chance explains, against draws."""

import dataclasses
import re

import numpy as np
import pytest

from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.evaluate.verdict import compare_with_published

THEIRS = Preprocess(img_size=(224, 224), crop_fraction=0.9)


def verdict(top1, *, images=50_000, used=THEIRS, theirs=THEIRS):
    return compare_with_published(top1, 81.2, images, used=used, theirs=theirs)


@pytest.mark.parametrize(
    ("top1", "said"),
    [
        (81.12, "as published: 81.12 %, and 50,000 of its 50,000 images explain 0.10 points"),
        (81.28, "as published: 81.28 %, and 50,000 of its 50,000 images explain 0.10 points"),
        (82.0, "higher by 0.80 points; 50,000 of its 50,000 images explain 0.10 points"),
        (
            80.0,
            "lower by 1.20 points; 50,000 of its 50,000 images explain 0.10 points; "
            "the preprocessing is the published one: look at images and labels",
        ),
    ],
)
def test_the_whole_set_leaves_nothing_to_chance(top1, said):
    assert verdict(top1) == said


def test_what_differs_is_named():
    used = dataclasses.replace(THEIRS, crop_fraction=0.875, interpolation="bilinear")
    assert verdict(80.0, used=used).endswith(
        "preprocessed otherwise than published: crop_fraction is 0.875 here and 0.9 there, "
        "interpolation is bilinear here and bicubic there"
    )
    assert verdict(80.0, theirs=None).endswith("was published is not known")
    assert "crop_fraction" not in verdict(81.2, used=used)


@pytest.mark.parametrize("images", [500, 20_000])
def test_a_part_is_believed_as_far_as_draws_of_it_differ(images):
    """Two standard deviations of the accuracy on so many of 50,000 images, and 0.1 points."""
    right = np.random.default_rng(0).hypergeometric(40_600, 9_400, images, size=20_000)
    want = 0.1 + 2 * 100 * (right / images).std()
    explained = float(re.search(r"explain ([\d.]+) points", verdict(0.0, images=images))[1])
    assert explained == pytest.approx(want, rel=0.02)

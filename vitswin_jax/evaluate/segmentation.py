"""Linear segmentation on frozen feature maps, and its mean intersection over union.

What DINOv2 and DINOv3 report as linear segmentation: a linear classifier of each patch's features,
whose logits are interpolated to the pixels (arXiv:2304.07193, section 7.4).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Integer

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError

IGNORED = 255
"""The class of pixels that are not counted, as in ADE20K, Cityscapes and Pascal VOC."""


_NEVER = -1e9  # the logit of a class that no patch has


class LinearSegmenter(NamedTuple):
    """A linear classifier of patches' features, which it standardises first."""

    mean: Float[np.ndarray, " c"]
    std: Float[np.ndarray, " c"]
    kernel: Float[np.ndarray, "c k"]
    bias: Float[np.ndarray, " k"]

    def __call__(
        self, features: Float[np.ndarray, "n i j c"], size: tuple[int, int]
    ) -> Int[np.ndarray, "n h w"]:
        """Returns the class of each pixel of images of a size, (height, width)."""
        logits = (np.asarray(features, np.float64) - self.mean) / self.std @ self.kernel + self.bias
        shape = (len(logits), *size, logits.shape[-1])
        pixels = jax.image.resize(jnp.asarray(logits, jnp.float32), shape, "bilinear")
        return np.asarray(pixels.argmax(-1), np.int32)


def fit_segmenter(
    features: Float[np.ndarray, "n i j c"],
    masks: Integer[np.ndarray, "m h w"],
    *,
    num_classes: int,
    c: float = 1.0,
) -> LinearSegmenter:
    """Returns the logistic regression from a patch's features to the class of most of its pixels.

    `c` is the inverse strength of its weight decay. Patches whose pixels are all `IGNORED` are left
    out. Raises UserError for masks of other classes, or of another number of images.
    """
    check_masks(features, masks, num_classes)
    from sklearn.exceptions import ConvergenceWarning  # 1 s to import
    from sklearn.linear_model import LogisticRegression

    labels = patch_classes(masks, features.shape[1:3], num_classes=num_classes).reshape(-1)
    x = np.asarray(features, np.float64).reshape(-1, features.shape[-1])[labels != IGNORED]
    labels = labels[labels != IGNORED]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"the masks have {len(np.unique(labels))} class(es); two are needed to learn."
        )
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-5)
    model = LogisticRegression(C=c, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((x - mean) / std, labels)
    kernel, bias = np.zeros((x.shape[1], num_classes)), np.full(num_classes, _NEVER)
    two = len(model.classes_) == 2  # scikit-learn has one row for both
    rows = np.concatenate([-model.coef_, model.coef_]) / 2 if two else model.coef_
    shift = np.concatenate([-model.intercept_, model.intercept_]) / 2 if two else model.intercept_
    kernel[:, model.classes_], bias[model.classes_] = rows.T, shift
    return LinearSegmenter(mean, std, kernel, bias)


def patch_classes(
    masks: Integer[np.ndarray, "n h w"], grid: tuple[int, int], *, num_classes: int
) -> Int[np.ndarray, "n i j"]:
    """Returns the class of most pixels of each patch; `IGNORED` where no pixel counts."""
    (n, h, w), (i, j) = masks.shape, grid
    row, column = np.arange(h) * i // h, np.arange(w) * j // w
    patch = (np.arange(n)[:, None, None] * i + row[:, None]) * j + column
    counted = masks != IGNORED
    places = patch[counted] * num_classes + masks[counted]
    counts = np.bincount(places, minlength=n * i * j * num_classes).reshape(n, i, j, num_classes)
    return np.where(counts.any(-1), counts.argmax(-1), IGNORED)


def mean_iou(
    predicted: Int[np.ndarray, "n h w"], masks: Integer[np.ndarray, "m h w"], *, num_classes: int
) -> tuple[float, Float[np.ndarray, " k"]]:
    """Returns the mean intersection over union, in [0, 1], and that of each class.

    A class that neither the masks nor the predictions have counts for nothing: NaN. Pixels that are
    `IGNORED` in the masks are left out.
    """
    check_masks(predicted, masks, num_classes)
    counted = masks != IGNORED
    pairs = masks[counted].astype(np.int64) * num_classes + predicted[counted]  # masks may be uint8
    table = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    both, either = np.diag(table), table.sum(0) + table.sum(1) - np.diag(table)
    each = np.where(either > 0, both / np.maximum(either, 1), np.nan)
    return float(np.nanmean(each)), each


def check_masks(images: np.ndarray, masks: np.ndarray, num_classes: int) -> None:
    """Raises UserError for masks of another number of images, or of classes that are not there."""
    faults = Faults()
    faults.need(len(images) == len(masks), f"{len(images)} images have {len(masks)} masks")
    wrong = np.unique(masks[(masks != IGNORED) & ((masks < 0) | (masks >= num_classes))])
    few = ", ".join(map(str, wrong[:5]))
    faults.need(
        not wrong.size,
        f"the masks have the classes {few}, and must have 0 to {num_classes - 1} or {IGNORED}",
    )
    faults.check()

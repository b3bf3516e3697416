"""Predictions of one image at several sizes, and mirrored, as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit, log_softmax, logit, logsumexp

from vitswin_jax.core.types import Batch

_LEAST = 1e-12  # a probability that float64 tells from 1 on the other side


def average_logits(
    each: Sequence[Float[np.ndarray, "n k"]], *, several: bool
) -> Float[np.ndarray, "n k"]:
    """Returns logits whose probabilities are the mean of those of each, float32.

    Probabilities are softmax's or, if an image may have `several` classes, each class's sigmoid.
    """
    if len(each) == 1:
        return each[0]
    logits = np.stack(each).astype(np.float64)
    if several:
        mean = np.clip(expit(logits).mean(0), _LEAST, 1 - _LEAST)
        return logit(mean).astype(np.float32)
    return (logsumexp(log_softmax(logits, -1), axis=0) - np.log(len(each))).astype(np.float32)


def mirrored(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches whose images are mirrored left to right."""
    for batch in batches:
        yield {**batch, "image": np.ascontiguousarray(batch["image"][:, :, ::-1])}

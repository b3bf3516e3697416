"""Weights as 8-bit integers: symmetric, one scale for each output channel.

Only matrices are quantised, and only as they are stored: the program multiplies by code * scale, in
float32. Of each output channel the largest weight becomes 127 or -127 (Krishnamoorthi 2018,
arXiv:1806.08342, sections 2.2 and 3.1.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int8

from vitswin_jax.nn.params import facts


def quantize_channels(
    weights: Float[np.ndarray, "..."], *, axis: int
) -> tuple[Int8[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Returns int8 codes in [-127, 127] and each channel's scale, of which weights ≈ code * scale.

    The scale has the weights' rank, and 1 but along `axis`; that of a channel of zeros is 1.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    largest = np.abs(weights).max(others, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), 1).astype(np.float32)
    return np.rint(weights / scale).astype(np.int8), scale


def quantize_parameters(
    flat: Mapping[str, Float[np.ndarray, "..."]],
) -> dict[str, tuple[Int8[np.ndarray, "..."], Float[np.ndarray, "..."]]]:
    """Returns codes and scales of those parameters that are quantised, by their flat paths."""
    out = {}
    for path, weights in flat.items():
        if (inputs := facts(path).inputs("int8")) is None:
            continue
        matrix = weights.reshape(int(np.prod(weights.shape[:inputs])), -1)
        codes, scale = quantize_channels(matrix, axis=1)
        ones = (1,) * inputs
        out[path] = codes.reshape(weights.shape), scale.reshape(ones + weights.shape[inputs:])
    return out

"""Weights as 8-bit integers: symmetric, one scale for each output channel.

Only matrices are quantised, and only as they are stored: the program multiplies by code * scale, in
float32. Of each output channel the largest weight becomes 127 or -127 (Krishnamoorthi 2018,
arXiv:1806.08342, sections 2.2 and 3.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int8

INPUT_AXES = {  # the leading axes that a product sums over, by the kernel's path; the rest: outputs
    r"(.*/)?(qkv|q|kv)/kernel": 1,  # (inputs, ..., heads, head_dim)
    r"(.*/)?attn(_pool)?/proj/kernel": 2,  # (heads, head_dim, outputs)
    r"(.*/)?(fc1|fc2|reduction|pre_logits|head\w*)/kernel": 1,
    r"patch_embed/proj/kernel": 3,  # (height, width, channels, outputs)
}
NEVER = r"(.*/)?cpb_mlp/.*"  # small, and behind it are logits' biases


def input_axes(path: str) -> int | None:
    """Returns how many leading axes of a parameter are summed over; None: it is not quantised."""
    if re.fullmatch(NEVER, path):
        return None
    return next((n for pattern, n in INPUT_AXES.items() if re.fullmatch(pattern, path)), None)


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
        if (inputs := input_axes(path)) is None:
            continue
        matrix = weights.reshape(int(np.prod(weights.shape[:inputs])), -1)
        codes, scale = quantize_channels(matrix, axis=1)
        ones = (1,) * inputs
        out[path] = codes.reshape(weights.shape), scale.reshape(ones + weights.shape[inputs:])
    return out

"""Tables of positions on another grid, each by the method of the code the weights are from.

The originals do not agree, and near misses are silent: the kernels below differ by a tenth of a
table's spread. Every method is separable, so it is a matrix an axis; NumPy in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Size = tuple[int, int]
Method = Callable[[int, int], np.ndarray]
"""(old, new) -> (new, old): how an axis of `old` samples gives one of `new`."""


def bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns PyTorch's bicubic without antialias (a = -0.75): Microsoft, Hugging Face, DINOv2."""
    return _half_pixel(old, new, a=-0.75, support=1.0, clamp=True)


def bicubic_by_scale(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns `bicubic` at the scale (new + 0.1) / old: DINO, iBOT, DINOv2 without registers.

    Their code adds the 0.1 against rounding, and PyTorch takes its samples by the scale it is
    given, not by the sizes (interpolate_pos_encoding of their vision_transformer.py).
    """
    scale = (new + 0.1) / old
    return _half_pixel(old, new, a=-0.75, support=1.0, clamp=True, scale=scale)


def bicubic_antialiased(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns PyTorch's bicubic with antialias (a = -0.5, wider when shrinking): timm."""
    return _half_pixel(old, new, a=-0.5, support=max(old / new, 1.0), clamp=False)


def bicubic_by_corners(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns PyTorch's bicubic whose corners stay where they are (align_corners): torchvision."""
    centres = np.linspace(0, old - 1, new)
    return _cubic_at(centres, old, a=-0.75, support=1.0, clamp=True)


def bilinear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns PyTorch's bilinear without antialias: bias tables of transformers' BEiT."""
    return _interpolated((np.arange(new) + 0.5) * (old / new) - 0.5, np.arange(old, dtype=float))


def bilinear_antialiased(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns PyTorch's bilinear with antialias, wider when shrinking: SigLIP 2's NaFlex."""
    support = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.maximum(1 - np.abs(np.arange(old)[None] - centres[:, None]) / support, 0.0)
    return weights / weights.sum(1, keepdims=True)


def corner_linear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns scipy.ndimage.zoom(order=1), whose corners stay where they are: Google."""
    return _interpolated(np.linspace(0, old - 1, new), np.arange(old, dtype=float))


def geometric(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns timm's (BEiT's) method for bias tables: linear, samples ever further apart.

    Offsets 0, 1, 1 + q, 1 + q + q², ... to both sides, with q such that they reach the new end.
    """
    reach, low, high = old // 2, 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**reach) / (1 - q) > new // 2 else (q, high)
    offsets = np.cumsum(q ** np.arange(reach))
    samples = np.concatenate([-offsets[::-1], [0.0], offsets])
    return _interpolated(np.arange(new) - float(new // 2), samples)


def resize_grid(
    table: Float[np.ndarray, "h w *c"], size: Size, *, method: Method
) -> Float[np.ndarray, "H W *c"]:
    """Returns a map on another grid, in its own dtype."""
    if table.shape[:2] == size:
        return table
    rows, columns = (method(old, new) for old, new in zip(table.shape, size, strict=False))
    resized = np.einsum("ij,jk...,lk->il...", rows, table.astype(np.float64), columns)
    return resized.astype(table.dtype)


def resize_pos_embed(
    pos_embed: Float[np.ndarray, "1 n c"], *, old: Size, new: Size, method: Method
) -> Float[np.ndarray, "1 m c"]:
    """Returns position embeddings on another patch grid; tokens before the grid's stay the same."""
    prefix = pos_embed.shape[1] - old[0] * old[1]
    grid = pos_embed[0, prefix:].reshape(*old, -1)
    grid = resize_grid(grid, new, method=method).reshape(1, new[0] * new[1], -1)
    return np.concatenate([pos_embed[:, :prefix], grid], axis=1)


def resize_bias_table(
    table: Float[np.ndarray, "rows heads"], *, old: Size, new: Size, method: Method
) -> Float[np.ndarray, "new_rows heads"]:
    """Returns a table of relative position biases for windows of another (height, width)."""
    (h, w), size = old, (2 * new[0] - 1, 2 * new[1] - 1)
    grid = table.reshape(2 * h - 1, 2 * w - 1, -1)
    return resize_grid(grid, size, method=method).reshape(size[0] * size[1], -1)


def adapt_input_channels(
    kernel: Float[np.ndarray, "h w c d"], in_chans: int
) -> Float[np.ndarray, "h w in_chans d"]:
    """Returns a first convolution for images of other channels (timm's adapt_input_conv).

    One channel gets the sum, so that grey images are seen as before; more repeat red, green and
    blue, scaled to keep the sum's size.
    """
    channels = kernel.shape[2]
    if in_chans == 1:
        return kernel.sum(2, keepdims=True, dtype=np.float64).astype(kernel.dtype)
    repeated = kernel[:, :, np.arange(in_chans) % channels]
    return (repeated * (channels / in_chans)).astype(kernel.dtype)


def _half_pixel(
    old: int, new: int, *, a: float, support: float, clamp: bool, scale: float | None = None
) -> Float[np.ndarray, "new old"]:
    """Returns cubic weights at pixel centres; beyond the border repeats it, or does not count."""
    centres = (np.arange(new) + 0.5) / (scale or new / old) - 0.5
    return _cubic_at(centres, old, a=a, support=support, clamp=clamp)


def _cubic_at(
    centres: Float[np.ndarray, " new"], old: int, *, a: float, support: float, clamp: bool
) -> Float[np.ndarray, "new old"]:
    """Returns cubic weights of `old` samples at places between them."""
    reach = int(np.ceil(2 * support)) + 1
    taps = np.floor(centres)[:, None] + np.arange(-reach, reach + 1)
    weights = _cubic((taps - centres[:, None]) / support, a)
    if not clamp:
        weights = np.where((taps >= 0) & (taps < old), weights, 0.0)
    matrix = np.zeros((len(centres), old))
    rows = np.broadcast_to(np.arange(len(centres))[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, old - 1).astype(int)), weights)
    return matrix / matrix.sum(1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Returns Keys' kernel (1981)."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _interpolated(targets: np.ndarray, samples: np.ndarray) -> Float[np.ndarray, "new old"]:
    """Returns linear interpolation between increasing samples; beyond them it stays constant."""
    one_hot = np.eye(len(samples))
    return np.stack([np.interp(targets, samples, row) for row in one_hot], axis=1)

"""Windows on feature maps (Swin, section 3.2): partition, shift, mask, relative index.

Pure functions. A window size is always (height, width) in tokens. What depends on sizes alone is
NumPy, computed once while a model is traced, and so a constant of the compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.lax import slice_in_dim
from jaxtyping import Array, Bool, Float, Int

from vitswin_jax.core.choices import one_of
from vitswin_jax.nn.sides import Side, Size, of_sides


@dataclasses.dataclass(frozen=True)
class Cut:
    """The cut of a block's maps into windows.

    `pad_before_roll` pads, then rolls (Hugging Face, the official detection code); otherwise the
    roll comes first (timm), so that where there is padding the shift joins other neighbours.
    """

    window_size: Size
    shift: Size = (0, 0)
    pad_before_roll: bool = True


def window_partition(
    x: Float[Array, "b h w c"], window_size: Size
) -> Float[Array, "b windows n c"]:
    """Cuts feature maps into windows of n = height * width tokens, both row-major.

    Raises ValueError where the window does not divide the map.
    """
    (height, width), (sh, sw) = x.shape[1:3], window_size
    if height % sh or width % sw:
        raise ValueError(f"window_size={window_size} must divide {height}x{width}; pad it first.")
    return rearrange(x, "b (i sh) (j sw) c -> b (i j) (sh sw) c", sh=sh, sw=sw)


def window_reverse(
    windows: Float[Array, "b windows n c"], window_size: Size, *, height: Side, width: Side
) -> Float[Array, "b _ _ c"]:
    """Puts windows back into feature maps; the inverse of `window_partition`."""
    sh, sw = window_size
    return rearrange(
        windows,
        "b (i j) (sh sw) c -> b (i sh) (j sw) c",
        i=height // sh,
        j=width // sw,
        sh=sh,
        sw=sw,
    )


@functools.lru_cache
def relative_position_index(window_size: Size) -> Int[np.ndarray, "n n"]:
    """Returns the row of the bias table for each (query, key) pair of a window (Swin, eq. 4).

    Row (dy + height - 1) * (2 width - 1) + (dx + width - 1), with (dy, dx) = query - key.
    """
    height, width = window_size
    place = np.moveaxis(np.mgrid[:height, :width], 0, -1).reshape(-1, 2)
    dy, dx = np.moveaxis(place[:, None] - place[None], -1, 0)
    return (dy + height - 1) * (2 * width - 1) + (dx + width - 1)


@of_sides
def shifted_window_mask(
    xp: Any, size: Size, window_size: Size, shift: Size
) -> Bool[np.ndarray | Array, "windows n n"]:
    """Returns the pairs of each window that may attend after the cyclic shift (Swin, fig. 4).

    The roll by -shift brings the first `shift` rows (columns) of a map of `size` to its far end,
    into windows they share with rows that were never their neighbours: those pairs are False.
    """
    rolled_in = [xp.arange(side) >= side - step for side, step in zip(size, shift, strict=True)]
    region = 2 * rolled_in[0][:, None] + rolled_in[1][None]
    sh, sw = window_size
    regions = rearrange(region, "(i sh) (j sw) -> (i j) (sh sw)", sh=sh, sw=sw)
    return regions[:, :, None] == regions[:, None, :]


def _clip_per_axis(resolution: Size, window: Size) -> tuple[Size, Size]:
    fits = [size <= side for size, side in zip(resolution, window, strict=True)]
    height, width = np.where(fits, resolution, window).tolist()
    down, right = (0 if fit else side // 2 for fit, side in zip(fits, window, strict=True))
    return (height, width), (down, right)


def _clip_min(resolution: Size, window: Size) -> tuple[Size, Size]:
    least = min(resolution)
    if any(size <= side for size, side in zip(resolution, window, strict=True)):
        return (min(least, window[0]), min(least, window[1])), (0, 0)
    return _clip_never(resolution, window)


def _clip_never(resolution: Size, window: Size) -> tuple[Size, Size]:
    del resolution
    return window, (window[0] // 2, window[1] // 2)


def _clip_shift(resolution: Size, window: Size) -> tuple[Size, Size]:
    down, right = (
        0 if size <= side else side // 2 for size, side in zip(resolution, window, strict=True)
    )
    return window, (down, right)


WINDOW_CLIPS: dict[str, Callable[[Size, Size], tuple[Size, Size]]] = {
    "per_axis": _clip_per_axis,  # timm: each axis for itself
    "min": _clip_min,  # Microsoft: square, by the shorter side
    "shift": _clip_shift,  # torchvision: windows stay, and what one covers is not shifted
    "never": _clip_never,  # timm's always_partition; the tutorial
}


def fit_window(resolution: Size, window_size: Size, *, window_clip: str) -> tuple[Size, Size]:
    """Returns (window, shift) of a stage whose map is `resolution`.

    Where the map is no larger than the window there is nothing to shift, and the window shrinks to
    the map; the originals differ in how (`WINDOW_CLIPS`). Raises UserError for an unknown rule.
    """
    return one_of("window_clip", window_clip, WINDOW_CLIPS)(resolution, window_size)


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: Size) -> Float[Array, "b H W c"]:
    """Pads maps with zeros at the bottom and the right, to multiples of (height, width)."""
    sides = zip(x.shape[1:3], multiple, strict=True)
    bottom, right = (-(-size // step) * step - size for size, step in sides)
    if not (bottom or right):
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def roll(x: Float[Array, "b h w c"], shift: Size) -> Float[Array, "b h w c"]:
    """Rolls maps cyclically by (rows, columns), as jnp.roll would.

    Slices and a concatenation, which every exporter knows; jnp.roll traces a nested jit.
    """
    for axis, step in enumerate(shift, 1):
        if start := -step % x.shape[axis]:
            first = slice_in_dim(x, start, None, axis=axis)
            x = jnp.concatenate([first, slice_in_dim(x, 0, start, axis=axis)], axis)
    return x


def map_windows(
    attend: Callable[[Array, np.ndarray | Array | None], Array],
    x: Float[Array, "b h w c"],
    cut: Cut,
) -> Float[Array, "b h w c"]:
    """Applies `attend(windows, mask)` to the (shifted) windows of maps of any size.

    The map is padded with zeros to whole windows; the pad tokens are attended to and cut off again.
    """
    (height, width), window_size, shift = x.shape[1:3], cut.window_size, cut.shift
    pad_before_roll, back = cut.pad_before_roll, (-shift[0], -shift[1])
    x = pad_to_multiple(x, window_size) if pad_before_roll else roll(x, back)
    x = roll(x, back) if pad_before_roll else pad_to_multiple(x, window_size)
    padded = x.shape[1], x.shape[2]
    mask = None
    if any(shift):
        mask = shifted_window_mask(padded, window_size=window_size, shift=shift)
    windows = attend(window_partition(x, window_size), mask)
    x = window_reverse(windows, window_size, height=padded[0], width=padded[1])
    if pad_before_roll:
        return roll(x, shift)[:, :height, :width]
    return roll(x[:, :height, :width], shift)

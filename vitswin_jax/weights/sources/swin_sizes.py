"""Window and image sizes of a Swin's file, from the rows of its tables and known models."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin import per_stage
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.windows import fit_window
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.source import Fields, Hints, Named, square


def complete(values: Iterable[int | None]) -> list[int] | None:
    """Returns the values, or None if one of them is unknown."""
    values = list(values)
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def find_sizes(
    rows: list[int],
    image: int | tuple[int, int] | None,
    fields: Fields,
    hints: Hints,
    count_rows: Callable[[int, int], int],
) -> Fields:
    """Returns the window and the image size, of which each stage's tensor has that many rows.

    `count_rows(height, width)` are the rows of a window; `image` is the size if the file shows it.
    """
    sides = [_side(n, count_rows) for n in rows]
    largest = max((side for side in sides if side is not None), default=None)
    asked = hints.asked
    windows = (hints.get("window_size"), largest, asked.get("window_size"))

    def found(sizes: Iterable[Any]) -> Fields | None:
        for size, window in itertools.product(sizes, windows):
            if None not in (size, window):
                fits = _fitted_windows(size, window, len(rows), fields, hints)
                if [count_rows(*fit) for fit in fits] == rows:
                    return {"window_size": window, "img_size": size}
        return None

    return (
        found([image or hints.get("img_size")])
        or _one_window(complete(sides), image, fields)
        or found([asked.get("img_size")])
        or _unseen(rows)
    )


def _side(rows: int, count_rows: Callable[[int, int], int]) -> int | None:
    """Returns the side of the square window that has that many rows; None: no square has."""
    root = square(rows) or 0
    return next((side for side in (root, (root + 1) // 2) if count_rows(side, side) == rows), None)


def _fitted_windows(
    image: int | tuple[int, int],
    window: Any,
    stages: int,
    fields: Fields,
    hints: Hints,
) -> list[tuple[int, int]]:
    """Returns the window of each stage, as the source's code fits it to the stage's map."""
    sizes = per_stage(window, stages)
    (h, w), (p, q) = pair(image), pair(fields["patch_size"])
    maps = [(-(-h // (p << stage)), -(-w // (q << stage))) for stage in range(stages)]
    clip = hints.get("window_clip", "per_axis")
    return [
        fit_window(resolution, size, window_clip=clip)[0]
        for resolution, size in zip(maps, sizes, strict=True)
    ]


def _one_window(
    sides: list[int] | None, image: int | tuple[int, int] | None, fields: Fields
) -> Fields | None:
    """Returns the sizes of a model whose last stage is one square window; None: sides are not."""
    if sides is None:
        return None
    last = sides[-1] * 2 ** (len(sides) - 1)  # the first stage's map, if the last is one window
    uniform = all(side == min(max(sides), last >> stage) for stage, side in enumerate(sides))
    return {
        "window_size": max(sides) if uniform else tuple((side, side) for side in sides),
        "img_size": image or last * pair(fields["patch_size"])[0],
    }


def _unseen(rows: list[int]) -> NoReturn:
    raise UserError(
        f"the file's windows have tables of {', '.join(map(str, rows))} rows, which are not those "
        "of square windows; give window_size= and img_size= of the model."
    )


def image_size(named: Named, tensors: Tensors, fields: Fields) -> int | tuple[int, int] | None:
    """Returns the image size that a position embedding or an attention mask shows, if square."""
    patch = pair(fields["patch_size"])
    areas = []
    if fields["ape"]:
        areas.append((0, named["absolute_pos_embed"][0].size // fields["embed_dim"]))
    for name, tensor in tensors.items():
        if mask := re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.blocks\.\d+\.attn_mask", name):
            areas.append((int(mask[1]), tensor.shape[0] * tensor.shape[1]))
    for stage, area in areas:
        if side := square(area):
            size = tuple(side * 2**stage * p for p in patch)
            return size[0] if size[0] == size[1] else size
    return None

"""Parameters for a model of other sizes than the file's, by the methods of the file's source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Shapes, counted
from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensor, shapes_of

Size = tuple[int, int]
HEADS = ("head", "head_dist")
_TABLE = "relative_position_bias_table"
_FIRST_CONVOLUTIONS = (
    "backbone/root_conv/kernel",
    "patch_embed/stem/conv_0/kernel",
    "patch_embed/proj/kernel",
)
"""The first one that a model has reads the image; the others read its map."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that the shapes of its parameters do not show."""

    grid: Size
    """Of patches, (height, width)."""
    windows: tuple[Size, ...] = ()
    """Of each stage."""
    num_classes: int = 0
    in_chans: int = 3

    def window_of(self, name: str) -> Size:
        """Returns the window of a bias table's stage; a ViT's whole grid is as one window."""
        stage = re.search(r"(?:^|/)stage_(\d+)/", name)
        return self.windows[int(stage[1])] if stage else self.grid


@dataclass(frozen=True)
class Methods:
    """The methods of resizing tables and mapping heads."""

    pos_embed: resize.Method = resize.bicubic_antialiased
    bias_table: resize.Method = resize.bicubic
    head_rows: Callable[[int, int], Sequence[int] | None] = lambda old, new: None
    """Which of the file's classes are the model's, from the numbers of both; None: a fresh head."""


def adapt(
    tensors: Mapping[str, Tensor],
    shapes: Shapes,
    *,
    old: Sizes,
    new: Sizes,
    methods: Methods,
    origin: str,
    fresh_head: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns our tensors, still unread, as `shapes` has them, and a line for each adaptation.

    Positions and windows are resized, input channels repeated or summed, and a head of other
    classes, or one that has to be (`fresh_head`), is fresh: zero. Raises UserError that lists
    whatever else does not fit.
    """
    adapted = dict(tensors)
    notes: list[str] = []
    if fresh_head or old.num_classes != new.num_classes:
        rows = None if fresh_head else methods.head_rows(old.num_classes, new.num_classes)
        adapted, note = _adapt_head(adapted, shapes, rows)
        notes.append(f"{old.num_classes} classes to {new.num_classes}: {note}")
    dropped = {name for name in adapted if name.split("/")[0] == "pre_logits"} - shapes.keys()
    if dropped:
        adapted = {name: tensor for name, tensor in adapted.items() if name not in dropped}
        notes.append("pre_logits is left out")
    adapted, changed = _adapt_parts(adapted, shapes)
    notes += changed
    resized: dict[str, list[str]] = {}
    of_maps = [name for name in _FIRST_CONVOLUTIONS if name in shapes][1:]
    for name in adapted.keys() & shapes.keys() - set(of_maps):
        change = _change(name, adapted[name].shape, old, new, methods)
        if change is not None:
            text, function = change
            adapted[name] = adapted[name].map(function, shapes[name])
            resized.setdefault(text, []).append(name)
    for text, names in sorted(resized.items()):
        notes.append(f"{names[0] if len(names) == 1 else f'{len(names)} bias tables'} {text}")
    tables = any(name.endswith(_TABLE) for name in shapes)
    if old.windows != new.windows and not tables:
        before, after = (", ".join(map(_x, windows)) for windows in (old.windows, new.windows))
        notes.append(f"windows of {before} to {after}: biases follow from their coordinates")
    found = shapes_of(adapted)
    check_parameters(found, shapes, origin=origin)
    return adapted, notes


def check_parameters(found: Shapes, shapes: Shapes, *, origin: str) -> None:
    """Raises UserError that lists all parameters that are missing, extra or of another shape."""
    faults = Faults()
    missing, extra = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    faults.need(not missing, f"missing {', '.join(missing)}")
    faults.need(not extra, f"not in the model {', '.join(extra)}")
    faults += [
        f"{name} has shape {found[name]}, the model's {shapes[name]}"
        for name in sorted(shapes.keys() & found.keys())
        if found[name] != shapes[name]
    ]
    faults.check(f"{origin}: does not fit the model: ")


def _adapt_head(
    tensors: dict[str, Tensor], shapes: Shapes, rows: Sequence[int] | None
) -> tuple[dict[str, Tensor], str]:
    heads = [name for name in shapes if name.split("/")[0] in HEADS]
    kept = {name: t for name, t in tensors.items() if name.split("/")[0] not in HEADS}
    if not heads:
        return kept, "the head is left out"
    if rows is not None:
        index = np.asarray(rows)
        chosen = {n: tensors[n].map(lambda head: head[..., index], shapes[n]) for n in heads}
        return kept | chosen, "the head's rows are chosen as the source maps its classes"
    fresh = {name: Tensor.of(np.zeros(shapes[name], np.float32)) for name in heads}
    return kept | fresh, "the head is fresh (zero)"


def _adapt_parts(tensors: dict[str, Tensor], shapes: Shapes) -> tuple[dict[str, Tensor], list[str]]:
    """Returns tensors with what fine-tuning begins anew, or has once a block, and a line for each.

    As MAE's and SimMIM's code does: a norm after the pooling takes the place of the one before it,
    and each block begins with the position biases that all blocks shared.
    """
    adapted, notes = dict(tensors), []
    if "fc_norm/scale" in shapes and "norm/scale" in adapted and "norm/scale" not in shapes:
        del adapted["norm/scale"], adapted["norm/bias"]
        for leaf, value in (("scale", np.ones), ("bias", np.zeros)):
            name = f"fc_norm/{leaf}"
            adapted[name] = Tensor.of(value(shapes[name], np.float32))
        notes.append("fc_norm is fresh, and norm left out")
    blocks = [name for name in shapes if re.fullmatch(rf"block_\d+/{_TABLE}", name)]
    if _TABLE in adapted and _TABLE not in shapes and blocks:
        adapted |= dict.fromkeys(blocks, adapted.pop(_TABLE))
        notes.append("each block begins with the relative positions that all shared")
    return adapted, notes


def _change(name: str, shape: tuple[int, ...], old: Sizes, new: Sizes, methods: Methods):
    """Returns a text and a function for a parameter that has to be changed, else None."""
    leaf = name.rpartition("/")[2]
    if leaf == "pos_embed" and old.grid != new.grid and len(shape) == 3:

        def resized(array: np.ndarray) -> np.ndarray:
            return resize.resize_pos_embed(
                array, old=old.grid, new=new.grid, method=methods.pos_embed
            )

        return f"resized from {_x(old.grid)} to {_x(new.grid)}", resized
    if leaf == "absolute_pos_embed" and old.grid != new.grid:
        return f"resized from {_x(old.grid)} to {_x(new.grid)}", lambda array: resize.resize_grid(
            array[0], new.grid, method=methods.pos_embed
        )[None]
    if leaf == _TABLE:
        before, after = old.window_of(name), new.window_of(name)
        if before != after:
            rows = (2 * before[0] - 1) * (2 * before[1] - 1)  # then come those of prefix tokens

            def table(array: np.ndarray) -> np.ndarray:
                resized = resize.resize_bias_table(
                    array[:rows], old=before, new=after, method=methods.bias_table
                )
                return np.concatenate([resized, array[rows:]])

            return f"resized from window {_x(before)} to {_x(after)}", table
    if name in _FIRST_CONVOLUTIONS and shape[2] == old.in_chans != new.in_chans:
        how = "their sum" if new.in_chans == 1 else f"repeated, times {old.in_chans}/{new.in_chans}"
        return (
            f"from {counted(old.in_chans, 'input channel')} to {new.in_chans}: {how}",
            lambda array: resize.adapt_input_channels(array, new.in_chans),
        )
    return None


def _x(size: Size) -> str:
    return f"{size[0]}x{size[1]}"

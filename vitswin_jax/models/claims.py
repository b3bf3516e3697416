"""Checks of a file's claims about its model against its tensors, before a model is built."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError, listed
from vitswin_jax.models.resnet import total_stride

COUNTS = ("depth", "depths", "resnet_layers", "decoder_depth")
"""Fields that count blocks, each of which has tensors."""

SIDES = ("window_size", "pretrained_window_sizes")
"""Fields that are sides of windows: each pair of a window's tokens has an index."""

_PLAIN = {"img_size": 224, "patch_size": 4, "embed_dim": 768}
_LARGEST = 16_384  # of an integer, unless a tensor is larger
_STAGES = 16  # of the longest list
_MAP = 1 << 25  # numbers in the first map, and pairs of tokens in a window: 128 MiB


@contextlib.contextmanager
def claiming(
    origin: str, fields: Mapping[str, Any], shapes: Iterable[tuple[int, ...]]
) -> Iterator[None]:
    """Makes a UserError, which names `origin`, of all that `fields` make fail in its block.

    The fields are those of a file whose tensors have `shapes`. Sizes that are far from the tensors'
    raise before the block is entered, for tracing a model of 10**9 blocks takes for ever.
    """
    _check(fields, list(shapes)).check(f"{origin}: its sizes cannot be a model: ")
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: its sizes cannot be a model: {error}") from error
    except Exception as error:  # fields of other types may make anything fail
        sizes = listed([f"{name}={value!r}" for name, value in fields.items()], most=8)
        raise UserError(f"{origin}: its sizes cannot be a model: {sizes}.") from error


def _check(fields: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> Faults:
    faults = Faults()
    largest = max([_LARGEST, *(n for shape in shapes for n in shape)])
    for name, value in fields.items():
        numbers = list(_integers(value))
        shown = listed([f"{name}={value!r}"])
        if name in COUNTS and sum(numbers) > len(shapes):
            faults.append(f"{shown}, and it has {len(shapes)} tensors")
        elif isinstance(value, list | tuple) and len(value) > _STAGES:
            faults.append(f"{shown} has more than {_STAGES} entries")
        elif max(numbers, default=0) > largest:
            faults.append(f"{shown} is larger than {largest}")
        elif name in SIDES and any(_area(side) ** 2 > _MAP for side in _sides(value)):
            faults.append(f"{shown} has more than {_MAP:,} pairs of tokens")
    if not faults:
        sizes = {name: fields.get(name, plain) for name, plain in _PLAIN.items()}
        shown = ", ".join(f"{name}={value!r}" for name, value in sizes.items())
        channels = next(_integers(sizes["embed_dim"]), 1)
        layers = fields.get("resnet_layers")  # a hybrid's patches are of its ResNet's last map
        stride = total_stride(tuple(layers)) if isinstance(layers, list | tuple) else 1
        tokens = _area(sizes["img_size"]) // max(1, _area(sizes["patch_size"]) * stride**2)
        large = tokens * channels > _MAP
        faults.need(not large, f"{shown} have a first map of more than {_MAP:,} numbers")
        large = str(fields.get("pos_embed")).startswith("relative") and tokens**2 > _MAP
        faults.need(not large, f"{shown} have more than {_MAP:,} pairs of tokens")
    return faults


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for item in value[: _STAGES + 1]:
            yield from _integers(item)
    elif isinstance(value, int):
        yield abs(value)


def _sides(value: Any) -> list[Any]:
    """Returns windows of a field: a pair or a number for all stages, or one for each stage."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _area(side: Any) -> int:
    """Returns the area of a square's side, or of (height, width)."""
    numbers = list(_integers(side))
    return numbers[0] ** 2 if len(numbers) == 1 else math.prod(numbers)

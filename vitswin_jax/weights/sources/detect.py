"""Which original a weights file is from, and the model in it, by its keys and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources import masked, swin, towers, vit
from vitswin_jax.weights.sources.source import Fields, Source

SOURCES: tuple[Source, ...] = (*swin.SOURCES, *masked.SOURCES, *towers.SOURCES, *vit.SOURCES)
"""All sources; a file is from the first that it fits."""

UNSEEN_SIZES = {"vit": ("img_size",), "swinv2": ("img_size", "window_size")}
"""Sizes that a family's file may not show, so that those that are asked for may as well be its."""


@dataclass(frozen=True)
class Detected:
    """A weights file as what it is."""

    source: Source
    fields: Fields
    """Every field that the model needs to equal the original."""
    tensors: Tensors
    """Under the names that the source's rules have."""
    left_out: tuple[str, ...]
    """What the model does not use: text towers, decoders, optimizer state."""


def detect(
    path: Path,
    contents: Contents,
    hints: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Detected:
    """Returns the source of a file and the fields of its model.

    `hints` are the fields of the model that the user names, `asked` those the user wants: they
    supply what the file does not show. Raises UserError where the file is from no known source, or
    leaves a field open.
    """
    source = next((s for s in SOURCES if s.fits(contents.tensors)), None)
    if source is None:
        names = list(contents.tensors)
        raise UserError(
            f"{path}: from none of the sources that are known ("
            f"{', '.join(dict.fromkeys(f'{s.name} {s.family}' for s in SOURCES))}): it has "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."
        )
    sizes = {"img_size", "window_size"} - set(UNSEEN_SIZES.get(source.family, ()))
    asked = {field: value for field, value in (asked or {}).items() if field not in sizes}
    hints = {**(hints or {}), **asked}
    if "num_heads" in asked:  # then they are not the named model's, which go with its width
        hints.pop("embed_dim", None)
    try:
        tensors, left_out = source.prepare(contents.tensors)
        fields = source.describe(source.named(tensors), tensors, hints)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: seems to be from {source.name}, and {error} is missing or misshapen."
        ) from error
    fields = {**source.numerics, **fields}
    return Detected(source, fields, tensors, (*contents.left_out, *left_out))

"""Which original a weights file is from, and the model in it, by its keys and shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources import masked, swin, towers, vit
from vitswin_jax.weights.sources.facts import Facts
from vitswin_jax.weights.sources.source import Fields, Source

SOURCES: tuple[Source, ...] = (*swin.SOURCES, *masked.SOURCES, *towers.SOURCES, *vit.SOURCES)
"""All sources; a file is from the first that it fits."""


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


def detect(path: Path, contents: Contents, facts: Facts) -> Detected:
    """Returns the source of a file and the fields of its model.

    `facts` supply what the file does not show. Raises UserError where the file is from no known
    source, leaves a field open, or contradicts the facts.
    """
    source = next((s for s in SOURCES if s.fits(contents.tensors)), None)
    if source is None:
        names = list(contents.tensors)
        raise UserError(
            f"{path}: from none of the sources that are known ("
            f"{', '.join(dict.fromkeys(f'{s.name} {s.family}' for s in SOURCES))}): it has "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."
        )
    try:
        tensors, left_out = source.prepare(contents.tensors)
        hints = facts.hints(source, contents.wrapper or "")
        shown = source.describe(source.named(tensors), tensors, hints)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        place = f" ({error.args[0]} here)" if isinstance(error, KeyError) else ""
        raise UserError(
            f"{path}: its keys are those of {source.name}, and a tensor that every such model "
            f"has{place} is missing or has another shape."
        ) from error
    fields = {**facts.numerics(source), **shown}
    facts.check(path, source, shown, fields)
    return Detected(source, fields, tensors, (*contents.left_out, *left_out))

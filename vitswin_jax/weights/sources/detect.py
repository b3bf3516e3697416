"""Detection of a weights file's original project and model, from its keys and shapes only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitswin_jax.core.types import UserError, listed
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources import (
    aimv2,
    beit,
    dinov3,
    masked,
    relpos,
    swin,
    swin_cr,
    torchvision,
    towers,
    vit,
)
from vitswin_jax.weights.sources.facts import Facts
from vitswin_jax.weights.sources.methods import SMALL, Method, find_method
from vitswin_jax.weights.sources.others import other_architecture
from vitswin_jax.weights.sources.roots import Root, choose_root, take_root
from vitswin_jax.weights.sources.source import Fields, Source

SOURCES: tuple[Source, ...] = (
    *swin.SOURCES,
    *swin_cr.SOURCES,
    *torchvision.SOURCES,
    *masked.SOURCES,
    *beit.SOURCES,
    *towers.SOURCES,
    *dinov3.SOURCES,
    *aimv2.SOURCES,
    *relpos.SOURCES,
    *vit.SOURCES,
)
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
    root: Root
    """Where in the file the model is."""
    method: Method | None
    """The self-supervised method that tensors beside the model show."""


def detect(path: Path, contents: Contents, facts: Facts, key: str | None = None) -> Detected:
    """Returns the source of a file and the fields of its model.

    `facts` supply what the file does not show, `key` chooses one of several copies. Raises
    UserError where the file is from no known source, leaves a field open, or contradicts the facts.
    """
    root = choose_root(path, contents, key)
    below, others = take_root(contents, root)
    source = next((s for s in SOURCES if s.fits(below, root.path)), None)
    other = other_architecture(below if source else contents.tensors)
    if other is not None:
        raise UserError(
            f"{path}: contains {other}, an architecture that vitswin_jax does not have."
        )
    if source is None:
        known = dict.fromkeys(source.name.partition(" (")[0] for source in SOURCES)
        raise UserError(
            f"{path}: is from no known source ({', '.join(known)}); its tensors are "
            f"{listed(contents.tensors, 3)}."
        )
    method = find_method(contents.tensors)
    source = method.applied_to(source) if method else source
    try:
        tensors, left_out = source.prepare(below)
        hints = facts.hints(source, root.container.removesuffix("."))
        hints.update(method.hints(tensors) if method else {})
        if contents.architecture == SMALL and "num_heads" not in hints:
            raise UserError(
                f"states {SMALL!r} as its architecture, which has 12 heads in MoCo v3 and 6 "
                "elsewhere; give num_heads=, or a name for 6."
            )
        shown = source.describe(source.named(tensors), tensors, hints)
        shown |= source.lost_biases(shown)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, ValueError, IndexError, TypeError, ArithmeticError) as error:
        place = f" ({error.args[0]} here)" if isinstance(error, KeyError) else ""
        raise UserError(
            f"{path}: its keys are those of {source.name}, and a tensor that every such model "
            f"has{place} is missing or has another shape."
        ) from error
    fields = {**facts.numerics(source), **shown}
    facts.check(path, source, shown, fields)
    return Detected(source, fields, tensors, (*others, *left_out), root, method)

"""The weights that a run starts from, reconciled with its config and its data.

Who decides what:

- the run: the classes, which are the data's, and the fields of `RUNS_OWN`;
- the run where it names them, else the file: `RESIZED`, sizes that tables are resized to;
- the file: all other fields, in sizes and in numeric details. A value that the config names (by the
  variant, or by hand) and that would change which parameters there are, raises; one that changes
  none, such as `act` or `global_pool`, wins where it was set by hand.

A fresh head takes `pre_logits` with it (ViT, section 3.2: the whole pre-trained head is removed),
unless the config names a width. With it `fc_norm` may be fresh, and relative positions that all
blocks shared may become each block's own, as in MAE's and SimMIM's fine-tuning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError, with_tuples
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.fields import EXECUTION, LAYOUT, TRAINING
from vitswin_jax.models.registry import model_kwargs, resolve_name
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.open import Pretrained
from vitswin_jax.weights.shapes import parameter_shapes
from vitswin_jax.weights.sources.preprocess import averaged

RUNS_OWN = ("num_classes", "in_chans", "dtype", *TRAINING, *EXECUTION, *LAYOUT)
RESIZED = ("img_size", "window_size", "pretrained_window_sizes")


def reconcile(
    name: str, fields: Mapping[str, Any], theirs: nn.Module, *, origin: str, fresh_head: bool
) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields that are the file's and not the config's, and a line for what differs.

    Raises UserError that lists every named field that is another architecture than the file's.
    """
    base, _ = resolve_name(name)
    _, row = VARIANTS.get(base, (base, {}))
    by_default = model_kwargs(name)
    chosen: dict[str, Any] = {}
    faults, notes = Faults(), []
    for key, value in fields.items():
        ours, other = with_tuples(value), getattr(theirs, key)
        by_hand = ours != by_default[key]
        if key in RUNS_OWN or ours == other:
            continue
        if key in RESIZED or (key == "pre_logits" and fresh_head):
            if not by_hand and key not in row and key != "pre_logits":
                chosen[key] = other
        elif not (by_hand or key in row):
            chosen[key] = other
        elif _begins_anew(theirs, key, ours, fresh_head=fresh_head):
            continue  # the adaptation says so
        elif _changes_parameters(theirs, key, ours):
            faults.append(f"model.{key} is {ours!r} and the file's {other!r}")
        elif by_hand:
            notes.append(f"{key} is {ours!r}, the file's {other!r}")
        else:
            chosen[key] = other
    faults.check(f"{origin}: config.model ({name}) is of another architecture: ")
    return chosen, notes


def needs_head(weights: Pretrained, class_names: Sequence[str]) -> tuple[bool, list[str]]:
    """Returns whether the head has to be fresh though a head of the same size may be there."""
    names, theirs = weights.metadata.class_names, weights.own.num_classes
    if theirs != len(class_names):
        return weights.methods.head_rows(theirs, len(class_names)) is None, []
    if names is None:
        return False, ["the head is kept; the file does not name its classes"]
    if tuple(names) != tuple(class_names):
        return True, ["the file's classes have other names"]
    return False, ["the head is kept; the classes are the same"]


def reconcile_preprocess(
    base: Preprocess, section: Mapping[str, Any], model: nn.Module
) -> tuple[Preprocess, list[str]]:
    """Returns `base` with what the config says in its place, and a line for each difference."""
    said = {key: value for key, value in section.items() if value is not None}
    fitted = base.fitted(pair(model.img_size), model.in_chans)
    for key in said.keys() & {"mean", "std"}:
        said[key] = _for_channels(key, said[key], model.in_chans)
    changed = dataclasses.replace(fitted, **said)
    notes = [] if fitted.channels == base.channels else [averaged(base, fitted)]
    notes += [
        f"{key} is {getattr(changed, key)!r}, the file's {getattr(base, key)!r}"
        for key in said
        if getattr(changed, key) != getattr(base, key)
    ]
    return changed, notes


def _for_channels(key: str, value: Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns `preprocess.mean` or `std` for each channel; one number is that of all (as timm)."""
    if len(value) not in (1, channels):
        raise UserError(
            f"preprocess.{key}={tuple(value)} has {len(value)} numbers, but model.in_chans="
            f"{channels}; give one number per channel, or one for all."
        )
    return tuple(value) * (channels // len(value))


def _begins_anew(theirs: nn.Module, key: str, value: Any, *, fresh_head: bool) -> bool:
    """Returns whether the file's parameters can begin what a field adds (`convert.adapt`)."""
    if key == "fc_norm":
        return fresh_head and bool(value)
    shared = theirs.pos_embed_at == "shared" if key == "pos_embed_at" else False
    return shared and value == "every" and theirs.pos_embed == "relative"


def _changes_parameters(theirs: nn.Module, key: str, value: Any) -> bool:
    """Returns whether a model with one field changed has other parameters, or cannot be."""
    changed = theirs.clone(**{key: value})
    try:
        changed.check()
        return parameter_shapes(changed) != parameter_shapes(theirs)
    except (ArithmeticError, TypeError, ValueError):  # UserError is a ValueError
        return True

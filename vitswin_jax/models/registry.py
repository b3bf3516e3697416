"""Models by name: variants, the originals' own names for them, and bare families."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitswin_jax.models.swin import Swin
from vitswin_jax.models.variants import CLASSES, LETTERS, VARIANTS
from vitswin_jax.models.vit import ViT
from vitswin_jax.types import UserError

FAMILIES: dict[str, type[nn.Module]] = {"vit": ViT, "swin": Swin}


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known word, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def model_names(pattern: str = "*") -> list[str]:
    """Returns the names of all variants that match the fnmatch pattern, sorted."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def resolve_name(name: str) -> tuple[str, dict[str, Any]]:
    """Returns (variant or family, fields that the name adds) for any name a model is known by.

    Besides our own (timm's) names: the ViT paper's (`B/16`, `ViT-B_16`), Microsoft's `..._22k`, and
    timm's `name.tag`, whose tag tells the head where the weights were not fine-tuned. Raises
    UserError, with the nearest name, for any other.
    """
    if paper := re.fullmatch(r"(?:ViT-)?(Ti|S|B|L|H)[_/](\d+)(?:-(\d+))?", name):
        letter, patch, img_size = paper.groups()
        base, added = f"vit_{LETTERS[letter]}_patch{patch}_{img_size or 224}", {}
    elif microsoft := re.fullmatch(r"(swin.*)_(22k)", name):
        base, added = microsoft[1], {"num_classes": CLASSES[microsoft[2]]}
    else:
        base, _, tag = name.partition(".")
        head = re.search(r"(in2[12]k)$", tag)
        added = {"num_classes": CLASSES[head[1]]} if head else {}
    if base not in VARIANTS and base not in FAMILIES:
        hint = nearest(base, [*VARIANTS, *FAMILIES])
        raise UserError(f"no model is called {name!r}{hint} `vitswin models` lists all.")
    return base, added


def model_kwargs(name: str) -> dict[str, Any]:
    """Returns every field of the model called `name`, as `create_model` would set it by default."""
    base, added = resolve_name(name)
    family, fields = VARIANTS.get(base, (base, {}))
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(FAMILIES[family])
        if field.name not in ("parent", "name")
    }
    return {**defaults, "dtype": jnp.dtype(defaults["dtype"]).name, **fields, **added}


def create_model(name: str, **fields: Any) -> nn.Module:
    """Creates a Linen module by the name of a variant, or of a family with all its fields.

    `fields` replace the variant's own: `num_classes` (0: no head), `img_size` (int or (h, w)) and
    `dtype` (of compute; parameters and logits are float32) are fields of every model. Raises
    UserError that lists every unknown name, with the nearest known one, or misfit between fields.
    """
    known = model_kwargs(name)
    wrong = [
        f"{name} has no field {field!r}{nearest(field, known) or '.'}"
        for field in fields
        if field not in known
    ]
    if wrong:
        raise UserError(" ".join(wrong))
    merged = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in (known | fields).items()
    }
    merged["dtype"] = jnp.dtype(merged["dtype"])
    model = FAMILIES[VARIANTS.get(resolve_name(name)[0], (resolve_name(name)[0],))[0]](**merged)
    model.check()
    return model


def family_of(model: nn.Module) -> str:
    """Returns the family a model belongs to: "vit", "swin", ..."""
    return next(name for name, family in FAMILIES.items() if type(model) is family)

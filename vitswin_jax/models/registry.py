"""Models by name: variants, the originals' own names for them, and bare families."""

from __future__ import annotations

import dataclasses
import fnmatch
import typing
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError, nearest, with_tuples
from vitswin_jax.models.fields import wrong_types
from vitswin_jax.models.names import parse_name
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swin_mlp import SwinMlp
from vitswin_jax.models.swin_moe import SwinMoe
from vitswin_jax.models.swinv2 import SwinV2
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.models.vit import ViT

FAMILIES: dict[str, type[nn.Module]] = {
    "vit": ViT,
    "swin": Swin,
    "swinv2": SwinV2,
    "swin_mlp": SwinMlp,
    "swin_moe": SwinMoe,
}


def model_names(pattern: str = "*") -> list[str]:
    """Returns the names of all variants that match the fnmatch pattern, sorted."""
    return sorted(fnmatch.filter(VARIANTS, pattern))


def resolve_name(name: str) -> tuple[str, dict[str, Any]]:
    """Returns (variant or family, fields that the name adds) for any name a model is known by.

    See `names.parse_name`: a name that tells its weights adds the classes of their head.
    """
    named = parse_name(name)
    classes = named.num_classes
    return named.variant, {} if classes is None else {"num_classes": classes}


def model_kwargs(name: str) -> dict[str, Any]:
    """Returns every field of the model called `name`, as `create_model` would set it by default."""
    base, added = resolve_name(name)
    family, fields = VARIANTS.get(base, (base, {}))
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(FAMILIES[family])
        if field.name not in ("parent", "name")
    }
    return {**defaults, "dtype": jnp.dtype(defaults["dtype"]).name, **fields, **added}


def optional_types(name: str) -> dict[str, type]:
    """Returns, for each field that may be None, the type of the values it has otherwise."""
    family = _family(name)
    hints = typing.get_type_hints(family)
    unions = {key: typing.get_args(hints[key]) for key in model_kwargs(name)}
    return {
        key: typing.get_origin(kinds[0]) or kinds[0]
        for key, kinds in unions.items()
        if type(None) in kinds
    }


def sized_fields(name: str) -> set[str]:
    """Returns the fields that are one number or (height, width), such as `img_size`."""
    hints = typing.get_type_hints(_family(name))
    kinds = {key: typing.get_args(hints[key]) for key in model_kwargs(name)}
    return {key for key, each in kinds.items() if int in each and tuple[int, int] in each}


def _family(name: str) -> type[nn.Module]:
    """Returns the class of the family of any name that `resolve_name` knows."""
    base = resolve_name(name)[0]
    return FAMILIES[VARIANTS.get(base, (base,))[0]]


def create_model(name: str, **fields: Any) -> nn.Module:
    """Creates a Linen module by the name of a variant, or of a family with all its fields.

    `fields` replace the variant's own: `num_classes` (0: no head), `img_size` (int or (h, w)) and
    `dtype` (of compute; parameters and logits are float32) are fields of every model. Raises
    UserError that lists every unknown name, with the nearest known one, every value of another type
    or every misfit between fields.
    """
    known = model_kwargs(name)
    wrong = [
        f"{name} has no field {field!r}{nearest(field, known) or '.'}"
        for field in fields
        if field not in known
    ]
    if wrong:
        raise UserError(" ".join(wrong))
    merged = {field: with_tuples(value) for field, value in (known | fields).items()}
    merged["dtype"] = jnp.dtype(merged["dtype"])
    family = _family(name)
    Faults(wrong_types(family, merged)).check()
    model = family(**merged)
    model.check()
    return model


def family_of(model: nn.Module) -> str:
    """Returns the family a model belongs to: "vit", "swin", ..."""
    return next(name for name, family in FAMILIES.items() if type(model) is family)

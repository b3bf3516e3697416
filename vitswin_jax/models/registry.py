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
from vitswin_jax.models.swinv2_cr import SwinV2Cr
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.models.vit import ViT
from vitswin_jax.nn.sides import Size

FAMILIES: dict[str, type[nn.Module]] = {
    "vit": ViT,
    "swin": Swin,
    "swinv2": SwinV2,
    "swinv2_cr": SwinV2Cr,
    "swin_mlp": SwinMlp,
    "swin_moe": SwinMoe,
}


def model_names(pattern: str = "*") -> list[str]:
    """Returns the names of all published variants that match a pattern, sorted.

    The names are timm's (without tags), and the originals' where timm has none.

    Args:
        pattern: as in a shell (`fnmatch`): `*` is any text, `?` one character.

    Returns:
        The names; an empty list if none matches.

    >>> model_names("swin_*_patch4_window12_384")
    ['swin_base_patch4_window12_384', 'swin_large_patch4_window12_384']
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def resolve_name(name: str) -> tuple[str, dict[str, Any]]:
    """Returns (variant or family, fields that the name adds) for any name a model is known by.

    See `names.parse_name`: a name that tells its weights adds the classes of their head.
    """
    if name in FAMILIES:  # also one that a user has added (docs/add_a_model.md)
        return name, {}
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
    pairs = {Size, tuple[int, int]}
    return {key for key, each in kinds.items() if int in each and pairs.intersection(each)}


def _family(name: str) -> type[nn.Module]:
    """Returns the class of the family of any name that `resolve_name` knows."""
    base = resolve_name(name)[0]
    return FAMILIES[VARIANTS.get(base, (base,))[0]]


def create_model(name: str, **fields: Any) -> nn.Module:
    """Creates a model (a Flax Linen module) by its name; it has no weights yet.

    `model.init(key, images)` draws weights. `model.apply(variables, images, train=False)` returns
    float32 logits (batch, num_classes), or features (batch, width) if `num_classes` is 0. `images`
    are float32 (batch, height, width, 3), normalised (`make_preprocess`).
    `method="features"` returns the pooled embedding before the head, and `method="feature_maps"`
    a tuple of maps (batch, h, w, channels).

    Args:
        name: a variant (`model_names`), another name of one (`B/16`, `ViT-B_16`, `name.tag` of
            timm), or a family ("vit", "swin", "swinv2", "swin_mlp", "swin_moe") for any sizes.
        **fields: fields of the model that replace those of the variant. Every model has
            `num_classes` (0: no head), `img_size` in pixels (int, or (height, width)) and `dtype`
            (of the computation; parameters and logits are float32). `print(model)` shows all
            fields with their values.

    Returns:
        The Linen module.

    Raises:
        UserError: a name or a field is unknown (with the nearest known one), a value has another
            type, or fields do not fit each other; one line lists all of them.

    >>> model = create_model("vit_tiny_patch16_224", num_classes=10, img_size=(64, 96))
    >>> model.num_classes, model.depth, model.img_size
    (10, 12, (64, 96))

    Source: ViT arXiv:2010.11929, Swin arXiv:2103.14030, Swin V2 arXiv:2111.09883.
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

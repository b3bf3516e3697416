"""Ways to pre-train a model without labels, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

from vitswin_jax.core.choices import one_of
from vitswin_jax.core.types import UserError
from vitswin_jax.models.dino import DINO
from vitswin_jax.models.mae import MAE
from vitswin_jax.models.simmim import SimMIM
from vitswin_jax.models.unlabelled import UnlabelledModel

METHODS: dict[str, type[UnlabelledModel]] = {"simmim": SimMIM, "mae": MAE, "dino": DINO}


def own_fields(model: UnlabelledModel | type[UnlabelledModel]) -> tuple[str, ...]:
    """Returns the names of the fields that are a method's, and not its encoder's."""
    others = ("encoder", "parent", "name")
    return tuple(f.name for f in dataclasses.fields(model) if f.name not in others)


def method_of(model: UnlabelledModel) -> str:
    """Returns the name of a model's method."""
    return next(name for name, kind in METHODS.items() if type(model) is kind)


def describe_method(model: UnlabelledModel) -> dict[str, Any]:
    """Returns the arguments of `create_pretraining` besides the encoder, as plain data."""
    return {"method": method_of(model)} | {key: getattr(model, key) for key in own_fields(model)}


def create_pretraining(encoder: nn.Module, *, method: str, **fields: Any) -> UnlabelledModel:
    """Creates a model that pre-trains `encoder`, a model without a head.

    Fields that are None are the method's own defaults. Raises UserError that lists what the method
    does not read, or what does not fit the encoder.
    """
    kind = one_of("pretrain.method", method, METHODS)
    known = own_fields(kind)
    given = {key: value for key, value in fields.items() if value is not None}
    if unread := [f"pretrain.{key}={value!r}" for key, value in given.items() if key not in known]:
        raise UserError(
            f"pretrain.method={method!r} does not read {', '.join(unread)}; it reads "
            f"{', '.join(known)}."
        )
    model = kind(encoder, **given)
    model.check()
    return model

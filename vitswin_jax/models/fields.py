"""Fields that change how a model is computed or trained, but not its function in inference."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from vitswin_jax.nn.sides import Symbol

EXECUTION: dict[str, Any] = {"attn_impl": "xla", "remat": "none"}
"""Fields of the same parameters and numbers, with their plainest values; a run may change them."""

LAYOUT: dict[str, Any] = {"scan": False}
"""Fields of the same numbers whose parameters are stored otherwise, with their plainest values."""

TRAINING = (
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "moe_drop_rate",
    "gate_noise",
    "init_std",
)
"""Fields that only training and initialisation read."""


def plain(model: nn.Module, **fields: Any) -> nn.Module:
    """Returns the same model with `fields`, its blocks in a loop, computed the plainest way.

    A field that the model's family does not have is left out.
    """
    known = {field.name for field in dataclasses.fields(model)}
    values = EXECUTION | LAYOUT | fields
    return model.clone(**{name: value for name, value in values.items() if name in known})


def wrong_types(kind: type, fields: Mapping[str, Any]) -> list[str]:
    """Returns a line for each field of a class whose value is not of the annotated type.

    Fields of other types than numbers, texts and tuples of them are not compared.
    """
    hints = typing.get_type_hints(kind)
    return [
        f"{name}={value!r} must be {_shown(hints[name])}"
        for name, value in fields.items()
        if name in hints and not _fits(value, hints[name])
    ]


def _shown(hint: Any) -> str:
    """Returns a type as a user may set it: without the symbols of an open size (`windows.Side`)."""
    symbol = f" | {Symbol.__module__}.{Symbol.__qualname__}"
    return str(getattr(hint, "__name__", hint)).replace(symbol, "")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(parts) == len(value) and all(map(_fits, value, parts))
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, types.NoneType, Symbol) else True


_NUMBERS: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}

"""Fields that say how a model is computed or trained, and not which function it is in inference."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn

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

"""The metadata of a weights file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vitswin_jax.core.types import UserError, listed, naming, with_tuples
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.fields import EXECUTION, LAYOUT


def model_fields(model: nn.Module) -> dict[str, Any]:
    """Returns a model's fields as plain data, except those that say how a run computed it."""
    others = {"parent", "name", *EXECUTION, *LAYOUT}
    names = {f.name for f in dataclasses.fields(model)} - others
    fields = {name: getattr(model, name) for name in sorted(names)}
    return fields | {"dtype": jnp.dtype(model.dtype).name}


@dataclass(frozen=True)
class Metadata:
    """The facts that a weights file states about its model."""

    name: str
    """The variant, or the family for sizes that no variant has."""
    fields: Mapping[str, Any]
    """The model's fields, as `create_model` takes them."""
    preprocess: Preprocess | None = None
    """How images become the model's input."""
    class_names: tuple[str, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights are from: dataset, split, configuration, step, source, ..."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_class_counts: tuple[int, ...] | None = None
    """How many training examples each class had."""
    pretrain: Mapping[str, Any] | None = None
    """Of a model that was pre-trained without labels, and has its decoder: what
    `create_pretraining` takes besides the encoder, whose name and fields the others are."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain data that `from_json` reads back, but for metrics that JSON cannot have."""
        finite = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        return dataclasses.asdict(dataclasses.replace(self, metrics=finite))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, origin: str) -> Metadata:
        """Reads plain data; raises UserError, naming `origin`, for what does not fit."""
        known = {f.name for f in dataclasses.fields(cls)}
        wrong = [f"unknown {key!r}" for key in sorted(data.keys() - known)]
        wrong += [f"no {key!r}" for key in ("name", "fields") if key not in data]
        if wrong:
            raise UserError(f"{origin}: the metadata has {', '.join(wrong)}.")
        values = {key: with_tuples(value) for key, value in data.items()}
        try:
            if isinstance(values.get("preprocess"), Mapping):
                with naming(origin):
                    values["preprocess"] = Preprocess.from_json(**values["preprocess"])
        except TypeError as error:
            raise UserError(
                f"{origin}: the metadata's preprocess has other keys than those of Preprocess: "
                f"{listed(data['preprocess'])}."
            ) from error
        return cls(**values)

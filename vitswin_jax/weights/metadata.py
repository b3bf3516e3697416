"""The metadata of a weights file."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
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

    def facts_of_training(self, *, same_function: bool = True) -> dict[str, Any]:
        """Returns the facts that only we state beside another library's weights, as plain data.

        It is for everyone to read, so it has the names of files without their folders, and no
        command. `same_function`: the library computes the model as we do, so that a published
        accuracy is its too.
        """
        facts: dict[str, Any] = {"provenance": public(self.provenance)}
        if not same_function:
            facts["provenance"] = without_accuracy(facts["provenance"])
        elif metrics := self.as_json()["metrics"]:
            facts["metrics"] = metrics
        if self.train_class_counts is not None:
            facts["train_class_counts"] = list(self.train_class_counts)
        return {key: value for key, value in facts.items() if value}

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


_PRIVATE = ("command", "data_dir")
"""Keys of the provenance that are about the machine of a run and not about its weights."""

_PATH = re.compile(r"(?:^|(?<=[\s,+:=(]))(?:~\w*|\.{1,2})?/(?!/)[^\s,+:]*")
"""A path in a text: of the root, of a home, or of the folder where a command ran; no address."""


def public(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a provenance for everyone to read: without commands and without folders of a machine.

    >>> public({"dataset": "/home/me/flowers", "command": "vitswin train", "seed": 0})
    {'dataset': 'flowers', 'seed': 0}
    """
    return {key: _named(value) for key, value in provenance.items() if key not in _PRIVATE}


def _named(value: Any) -> Any:
    """Returns a value with the names of files in place of their paths."""
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    return (
        _PATH.sub(lambda path: PurePath(path[0]).name, value) if isinstance(value, str) else value
    )


def without_accuracy(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a provenance without the published accuracy, which is that of another function."""
    return {key: x for key, x in provenance.items() if not key.startswith("expected_top1")}

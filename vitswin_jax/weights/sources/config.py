"""Configurations beside a weights file: the facts in timm's and transformers' `config.json`.

`timm_config.py`, `transformers_config.py` and `transformers_processor.py` give their keys our
names. A key that changes what the model computes, with a value that no model here can have, raises:
no other model takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitswin_jax.core.json import read_json
from vitswin_jax.core.types import with_tuples
from vitswin_jax.weights.formats.native import KEY as OWN
from vitswin_jax.weights.formats.native import TRAINING_SCHEMA
from vitswin_jax.weights.hub import CONFIG, PROCESSOR
from vitswin_jax.weights.sources import timm_config, transformers_config, transformers_processor
from vitswin_jax.weights.sources.source import Source

SCHEMAS: Mapping[str, Any] = {
    CONFIG: {
        "type": "object",
        "properties": {
            **timm_config.SCHEMA,
            **transformers_config.CONFIG_SCHEMA,
            OWN: {"type": "object", "properties": TRAINING_SCHEMA},
        },
    },
    PROCESSOR: {"type": "object", "properties": transformers_processor.PROCESSOR_SCHEMA},
}
"""What has to be true of each file before anything is read from it."""


@dataclass(frozen=True)
class Training:
    """The facts that we add to another library's `config.json`, under a key of our own, `OWN`."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_class_counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Stated:
    """The facts that a configuration states; None and empty: nothing."""

    origin: str
    """Its path, for messages."""
    variant: str | None = None
    """The name of the model in timm, with the tag of its weights."""
    kind: str | None = None
    """transformers' `model_type`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the library of the configuration gives to such a model if nothing states them."""
    num_labels: int | None = None
    """Classes of the head, if there is one."""
    class_names: tuple[str, ...] | None = None
    images: Mapping[str, Any] | None = None
    """Fields of `Preprocess`, except for the size."""
    training: Training = field(default_factory=Training)

    def check_source(self, source: Source) -> None:
        """Raises UserError where the tensors are not those of the library's model."""
        if self.kind is not None:
            transformers_config.check_source(self.kind, source, origin=self.origin)


def read_config(folder: Path | None) -> Stated | None:
    """Returns the facts in the configurations of a folder of weights; None: there are none.

    Raises UserError for a file that is no configuration, for an architecture that is not here, and
    for a key with a value that no model here can have.
    """
    if folder is None:
        return None
    found = {
        name: read_json(folder / name, schema)
        for name, schema in SCHEMAS.items()
        if (folder / name).is_file()
    }
    if not found:
        return None
    config, origin = found.get(CONFIG, {}), str(folder / CONFIG)
    own = config.get(OWN, {})
    training = Training(**{key: with_tuples(own[key]) for key in TRAINING_SCHEMA if key in own})
    if timm_config.is_timm(config):
        return Stated(origin, training=training, **timm_config.stated(config, origin=origin))
    images = None
    if PROCESSOR in found:
        place = str(folder / PROCESSOR)
        images = transformers_processor.images(found[PROCESSOR], origin=place)
    stated = transformers_config.stated(config, origin=origin)
    return Stated(origin, images=images, training=training, **stated)

"""What stands beside weights on the hub: timm's and transformers' own configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"

_TIMM = {
    "mean": "mean",
    "std": "std",
    "crop_fraction": "crop_pct",
    "crop_mode": "crop_mode",
    "interpolation": "interpolation",
}
"""Fields of `Preprocess` -> timm's."""


@dataclass(frozen=True)
class HubConfig:
    """What a configuration tells; None: it does not."""

    variant: str | None = None
    images: Mapping[str, Any] | None = None
    """The fields of `Preprocess`, but for the size."""
    class_names: tuple[str, ...] | None = None


def read_hub_config(folder: Path) -> HubConfig:
    """Reads the configurations in a folder of weights; those of other programs tell nothing."""
    config = _read(folder / CONFIG)
    if isinstance(pretrained := config.get("pretrained_cfg"), dict):
        name = f"{config.get('architecture', '')}.{pretrained.get('tag', '')}".strip(".")
        fields = {
            ours: pretrained[theirs] for ours, theirs in _TIMM.items() if theirs in pretrained
        }
        return HubConfig(name or None, fields or None)
    return HubConfig(None, _transformers(_read(folder / PROCESSOR)), _class_names(config))


def _transformers(processor: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a processor's fields: it covers the shorter edge and crops, or squashes."""
    try:
        images = {"mean": processor["image_mean"], "std": processor["image_std"]}
        images["interpolation"] = Image.Resampling(processor["resample"]).name.lower()
        size = _shortest(processor["size"])
        crop = _shortest(processor["crop_size"]) if processor.get("do_center_crop") else None
        if crop is None:
            return images | {"crop_mode": "squash", "crop_fraction": 1.0}
        return images | {"crop_fraction": min(1.0, crop / size)}
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _shortest(size: int | Mapping[str, int]) -> int:
    """Returns pixels of transformers' `size`: 224, or by `shortest_edge`, `height` and `width`."""
    return size if isinstance(size, int) else min(size.values())


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns transformers' names of the classes, unless it made them up."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or labels.keys() != set(map(str, range(len(labels)))):
        return None
    names = tuple(str(labels[str(i)]) for i in range(len(labels)))
    return None if names == tuple(f"LABEL_{i}" for i in range(len(labels))) else names


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}

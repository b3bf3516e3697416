"""transformers' `preprocessor_config.json` as our preprocessing.

A key that a file leaves out has the default of its class there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.sources.source import CLIP, HALF

_FLAG = {"type": ["boolean", "null"]}
_PIXELS = {"type": "integer", "minimum": 1, "maximum": 100_000}
_SIZE = {
    "type": ["integer", "array", "object", "null"],
    "minimum": 1,
    "maximum": 100_000,
    "items": _PIXELS,
    "minItems": 1,
    "maxItems": 2,
    "minProperties": 1,
    "additionalProperties": _PIXELS,
}
_CHANNELS = {"type": ["array", "null"], "items": {"type": "number"}}
PROCESSOR_SCHEMA: Mapping[str, Any] = {
    **dict.fromkeys(("image_mean", "image_std"), _CHANNELS),
    **dict.fromkeys(("size", "crop_size"), _SIZE),
    "image_processor_type": {"type": "string"},
    "feature_extractor_type": {"type": "string"},
    **{
        f"do_{step}": {"type": ["boolean", "null"]}
        for step in ("resize", "rescale", "normalize", "center_crop")
    },
    "rescale_factor": {"type": ["number", "null"], "exclusiveMinimum": 0},
    "resample": {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
}
"""The keys of a `preprocessor_config.json` that are read."""


@dataclass(frozen=True)
class Processor:
    """The defaults of a class of image processors."""

    resample: int
    size: Any
    crop_size: Any = None
    statistics: Mapping[str, Any] = field(default_factory=lambda: HALF)


_SQUARE, _EDGE = {"height": 224, "width": 224}, {"shortest_edge": 224}
PROCESSORS = {
    "ViT": Processor(2, _SQUARE),
    "DeiT": Processor(3, {"height": 256, "width": 256}, _SQUARE),
    "CLIP": Processor(3, _EDGE, _SQUARE, CLIP),
    "Bit": Processor(3, _EDGE, _SQUARE, CLIP),
    "Siglip": Processor(3, _SQUARE),
}
"""The beginning of a processor's name, before `ImageProcessor` or `FeatureExtractor`."""


def images(processor: Mapping[str, Any], *, origin: str) -> dict[str, Any]:
    """Returns the fields of `Preprocess`, except for the size, of an image processor.

    "shortest_edge" resizes an image until it covers the size, other sizes give it their shape.
    It rescales pixels, by 1/255 if it does not say otherwise, and normalises them; ours are of
    pixels in [0, 1], so that another factor, and none, change mean and std. Raises UserError where
    a processor that is not in `PROCESSORS` leaves out what only its class knows.
    """
    name = processor.get("image_processor_type") or processor.get("feature_extractor_type") or "ViT"
    name = name.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    own = PROCESSORS.get(name)

    def value(key: str, default: Any) -> Any:
        found = processor.get(key)
        if found is None and own is None:
            raise UserError(
                f"{origin}: has no {key}, and the defaults of {name!r} are not known; those of "
                f"{', '.join(PROCESSORS)} are."
            )
        return default if found is None else found

    known = own or PROCESSORS["ViT"]
    mean, std = (0.0,) * 3, (1.0,) * 3
    if processor.get("do_normalize", True):
        mean = value("image_mean", known.statistics["mean"])
        std = value("image_std", known.statistics["std"])
    factor = _levels(processor)
    size = value("size", known.size)
    crop = None
    if processor.get("do_center_crop", known.crop_size is not None):
        crop = value("crop_size", known.crop_size)
    fraction = 1.0 if crop is None else min(1.0, _shortest(crop) / _shortest(size))
    shape = known.size if isinstance(size, int) else size  # which a bare number leaves to the class
    squash = "squash" if fraction == 1.0 else "squash_crop"
    return {
        "mean": tuple(each / factor for each in mean),
        "std": tuple(each / factor for each in std),
        "interpolation": Image.Resampling(value("resample", known.resample)).name.lower(),
        "crop_mode": "center" if "shortest_edge" in shape else squash,
        "crop_fraction": fraction,
    }


def _levels(processor: Mapping[str, Any]) -> float:
    """Returns the value that a processor gives to white, 255, before it normalises."""
    if not processor.get("do_rescale", True):
        return 255.0
    factor = processor.get("rescale_factor")
    white = 1.0 if factor is None else 255 * factor
    return 1.0 if math.isclose(white, 1.0, rel_tol=1e-6) else white  # 1/255 as a decimal


def _shortest(size: Any) -> int:
    """Returns pixels of a size: 224, [224, 224], or by `shortest_edge`, `height` and `width`."""
    if isinstance(size, int):
        return size
    return min(size.values() if isinstance(size, dict) else size)

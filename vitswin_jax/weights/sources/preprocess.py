"""How images are given to Vision Transformers whose files look alike: timm's names, many recipes.

DeiT, DeiT-3, DINOv2, MAE and CLIP's towers have one layout with AugReg's models, and see images in
other units. The numbers are those of timm's pretrained configurations; where configurations of one
kind differ, what most of them say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.registry import family_of
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.metadata import model_fields
from vitswin_jax.weights.sources.source import CLIP, HALF, IMAGENET, SOME, Fields

# The Swin families: ImageNet's statistics, 224 of 256 pixels (the official data/build.py).
_MICROSOFT: Mapping[str, Any] = IMAGENET | {"crop_fraction": 0.875}
_LARGE = 300  # pixels: between 256 and 336, the sizes there are


class _Kind(NamedTuple):
    """A kind of model: what its files show, what its names have, how it is given images."""

    shows: Mapping[str, tuple[Any, ...]] | None
    """Fields to the values they may have, as in `Source.holds`; None: no file shows it."""
    named: str
    """An expression that is found in the names of its variants and tags."""
    images: Mapping[str, Any]
    crop_fraction: float = 0.9
    large_crop_fraction: float = 1.0


# fmt: off
_LAYER_SCALE = {"init_values": (SOME,), "class_token": (True,)}
_KINDS = (  # the first that fits
    _Kind({"dist_token": (True,)}, "^deit_", IMAGENET),
    _Kind({"pre_norm": (True,)}, "clip", CLIP, 1.0),
    _Kind(  # DeiT-3: its position table has no row for the class token
        _LAYER_SCALE | {"no_embed_class": (True,), "reg_tokens": (0,)}, "^deit3_", IMAGENET,
    ),
    _Kind(_LAYER_SCALE | {"patch_size": (14,)}, "dinov2", IMAGENET, 1.0),
    _Kind({"global_pool": ("map",)}, "siglip", HALF, 0.9, 0.9),
    _Kind(None, r"\b(mae|dino)\b|ijepa", IMAGENET),
    _Kind(None, "", HALF),  # AugReg's and the first ViT's
)
# fmt: on


def default_preprocess(model: nn.Module, name: str = "") -> Preprocess:
    """Returns the preprocessing of a model that is from no file, or from a silent one.

    `name` is the model's, with or without timm's tag.
    """
    images = _MICROSOFT
    if family_of(model) == "vit":
        images = timm_preprocess(model_fields(model), name)
    return Preprocess(img_size=pair(model.img_size), **images)


def timm_preprocess(fields: Fields, name: str = "") -> Mapping[str, Any]:
    """Returns the fields of `Preprocess`, but for the size, of a ViT in timm's layout.

    What the model's `fields` show wins; `name`, a variant's with or without timm's tag, supplies
    the rest: a DeiT without a distillation token and an MAE look as every plain ViT does, whose
    inputs lie in [-1, 1].
    """
    shown = (kind for kind in _KINDS if kind.shows is not None and _fits(kind.shows, fields))
    named = (kind for kind in _KINDS if re.search(kind.named, name))
    kind = next(shown, None) or next(named)
    size = fields["img_size"]
    large = (min(size) if isinstance(size, tuple) else size) > _LARGE
    fraction = kind.large_crop_fraction if large else kind.crop_fraction
    return {**kind.images, "crop_fraction": fraction}


def _fits(shows: Mapping[str, tuple[Any, ...]], fields: Fields) -> bool:
    return all(
        fields.get(field) in values or (SOME in values and bool(fields.get(field)))
        for field, values in shows.items()
    )

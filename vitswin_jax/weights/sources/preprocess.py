"""The preprocessing of models whose files state none.

A name says it, by the table of timm's tags (`models/tags.txt`). Without one, so do the kinds of
model that files show: DeiT, DeiT-3, DINOv2, TIPS and CLIP's towers have one layout with AugReg's
models, and see images in other units. Where timm's configurations of one kind differ, what most of
them say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from vitswin_jax.core.types import UserError, counted
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.names import Named, parse_name
from vitswin_jax.models.registry import family_of, model_kwargs
from vitswin_jax.models.tags import Tag, tags_of
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.metadata import Metadata, model_fields
from vitswin_jax.weights.sources.source import (
    CLIP,
    HALF,
    IMAGENET,
    SATELLITE,
    SOME,
    UNIT,
    Fields,
    Source,
)

STATISTICS = {
    "half": HALF, "imagenet": IMAGENET, "clip": CLIP, "unit": UNIT, "satellite": SATELLITE,
}  # fmt: skip
"""The words of the table of tags."""

# The Swin families: ImageNet's statistics, 224 of 256 pixels (the official data/build.py).
_MICROSOFT: Mapping[str, Any] = IMAGENET | {"crop_fraction": 0.875}
_LARGE = 300  # pixels: between 256 and 336, the sizes there are
# Ends of the names of encoders whose files show the method of their training.
_SELF_SUPERVISED = (".mae", ".simmim", ".dino", ".moco", ".ijepa", ".msn")


class _Kind(NamedTuple):
    """A kind of model: what its files show, how it is given images."""

    shows: Mapping[str, tuple[Any, ...]]
    """Fields to the values they may have, as in `Source.holds`."""
    images: Mapping[str, Any]
    crop_fraction: float = 0.9
    large_crop_fraction: float = 1.0


_LAYER_SCALE = {"init_values": (SOME,), "class_token": (True,)}
_KINDS = (  # the first that fits
    _Kind({"depths": (SOME,)}, IMAGENET),  # the Swin families
    _Kind({"dist_token": (True,)}, IMAGENET),
    _Kind({"rope_type": ("centred",)}, IMAGENET, 1.0),  # DINOv3
    _Kind({"rope_type": ("axial",), "pre_norm": (True,)}, HALF, 1.0),  # Perception Encoder
    _Kind({"qkv_bias": ("qv",), "class_token": (True,)}, CLIP),  # EVA
    _Kind({"rope_type": ("axial", "mixed"), "class_token": (True,)}, IMAGENET),  # RoPE-ViT
    _Kind({"norm_layer": ("rmsnorm",), "reg_tokens": (0,)}, CLIP, 1.0),  # AIMv2
    _Kind({"scale_attn_norm": (True,)}, IMAGENET, 1.0),  # BEiT-3
    _Kind({"no_embed_class": (True,), "final_norm": (False,)}, CLIP, 1.0),  # RADIO
    _Kind({"final_norm": (False,)}, IMAGENET, 1.0),  # InternViT
    _Kind({"pre_norm": (True,)}, CLIP, 1.0),
    # DeiT-3: its position table has no row for the class token.
    _Kind(_LAYER_SCALE | {"no_embed_class": (True,), "reg_tokens": (0,)}, IMAGENET),
    _Kind(_LAYER_SCALE | {"patch_size": (14,), "reg_tokens": (1,)}, UNIT, 1.0),  # TIPS
    _Kind(_LAYER_SCALE | {"patch_size": (14,)}, IMAGENET, 1.0),  # DINOv2
    _Kind({"global_pool": ("map",)}, HALF, 0.9, 0.9),  # SigLIP
    _Kind({}, HALF),  # AugReg's and the first ViT's
)


def default_preprocess(model: nn.Module, name: str = "") -> Preprocess:
    """Returns the preprocessing of a model that is from no file, or from a silent one.

    `name` is the model's, with or without timm's tag.
    """
    microsoft = family_of(model) != "vit" and not named_images(name)
    images = _MICROSOFT if microsoft else timm_preprocess(model_fields(model), name)
    size = pair(model.img_size)
    return Preprocess(size, **images).fitted(size, model.in_chans)


def preprocess_of(model: nn.Module, metadata: Metadata) -> Preprocess:
    """Returns a model's preprocessing, at its size: that of its metadata, else its default."""
    stated = metadata.preprocess or default_preprocess(model, metadata.name)
    return stated.fitted(pair(model.img_size), model.in_chans)


def averaged(before: Preprocess, now: Preprocess) -> str:
    """Returns the line about the statistics of a model with other channels."""
    mean, std = (f"{getattr(now, key)[0]:.4g}" for key in ("mean", "std"))
    return (
        f"mean {mean} and std {std} are the average of {counted(before.channels, 'channel')}, for "
        f"each of {now.channels}"
    )


def timm_preprocess(fields: Fields, name: str = "") -> Mapping[str, Any]:
    """Returns the fields of `Preprocess`, but for the size, of a model in timm's layout.

    `name`, a variant's with or without timm's tag, decides if its model is of the kind that the
    model's `fields` show: a DeiT without a distillation token and an MAE look as every plain ViT
    does, whose inputs lie in [-1, 1].
    """
    shown = _kind(fields)
    if (images := named_images(name)) is not None and _kind(model_kwargs(name)) is shown:
        return images
    size = max(pair(fields["img_size"]))
    fraction = shown.large_crop_fraction if size > _LARGE else shown.crop_fraction
    images = IMAGENET if name.endswith(_SELF_SUPERVISED) else shown.images
    return {**images, "crop_fraction": fraction}


def images_of(source: Source, fields: Fields, name: str | None) -> Mapping[str, Any]:
    """Returns the fields of `Preprocess`, but for the size, of a model from a file.

    A tag in the `name` says it. Without one, each source has its own rule or default.
    """
    if callable(source.preprocess):
        return source.preprocess(fields, name or "")
    named = _parse(name or "")
    if named is not None and named.tag is not None:
        return _images(tags_of(named.variant)[named.tag])
    return source.preprocess


def beit_preprocess(fields: Fields, name: str) -> Mapping[str, Any]:
    """Returns the fields of `Preprocess` of a BEiT that a name tells, or else of a SimMIM ViT."""
    del fields
    return named_images(name) or IMAGENET


def named_images(name: str) -> Mapping[str, Any] | None:
    """Returns the row of the table of tags for a name, or None if timm has no such name.

    A name without a tag is of the weights that timm loads by that name.
    """
    named = _parse(name)
    tags = tags_of(named.variant) if named is not None else {}
    if named is None or not tags:
        return None
    return _images(tags[named.tag or next(iter(tags))])


def _parse(name: str) -> Named | None:
    with contextlib.suppress(UserError):
        return parse_name(name)
    return None


def _images(tag: Tag) -> Mapping[str, Any]:
    return {
        **STATISTICS[tag.statistics],
        "crop_fraction": tag.crop_fraction,
        "crop_mode": tag.crop_mode,
        "interpolation": tag.interpolation,
    }


def _kind(fields: Fields) -> _Kind:
    return next(kind for kind in _KINDS if _fits(kind.shows, fields))


def _fits(shows: Mapping[str, tuple[Any, ...]], fields: Fields) -> bool:
    return all(
        fields.get(field) in values or (SOME in values and bool(fields.get(field)))
        for field, values in shows.items()
    )

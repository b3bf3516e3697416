"""Models as functions of images of any size: what a program with open height and width computes.

A ViT is, for each size, the model that `img_size` gives, with its table of positions resized. A
Swin keeps the windows of its own `img_size` and pads the maps of other images to whole windows.
"""

from __future__ import annotations

from flax import linen as nn

from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swin_moe import SwinMoe
from vitswin_jax.models.vit_base import ViTFields
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.posemb import SINCOS
from vitswin_jax.nn.sides import Size

_POSITIONS = ("learned", "none", *SINCOS)
"""`pos_embed` of ViTs whose positions follow the size: a table that is resized, or a formula."""


def fixed_by(model: nn.Module) -> str | None:
    """Returns why a model takes images of one size only, as the rest of a line; None: it does not.

    >>> import vitswin_jax
    >>> fixed_by(vitswin_jax.create_model("vit", pos_embed="learned2d"))
    "pos_embed='learned2d' has a table for one grid of patches, and no source resizes it"
    """
    if isinstance(model, SwinMoe):
        return "Swin-MoE's experts take a number of tokens that follows from the size"
    if isinstance(model, Swin):
        return "ape=True adds a table of positions for one map" if model.ape else None
    if not isinstance(model, ViTFields):
        return f"{type(model).__name__} is neither a ViT nor a Swin"
    if model.resnet_layers is not None:
        return f"resnet_layers={model.resnet_layers} pads images by a rule of their size"
    if model.pos_embed not in _POSITIONS:
        return f"pos_embed={model.pos_embed!r} has a table for one grid of patches, and no " + (
            "source resizes it" if model.pos_embed == "learned2d" else "rule for an open one"
        )
    return None


def step_of(model: nn.Module) -> Size:
    """Returns the numbers that must divide an image's height and width; 1 where any side will do.

    >>> import vitswin_jax
    >>> step_of(vitswin_jax.create_model("vit_tiny_patch16_224"))
    (16, 16)
    """
    if isinstance(model, ViTFields) and not model.crop_to_patches:
        return pair(model.patch_size)
    return 1, 1


def at_size(model: nn.Module, size: Size) -> nn.Module:
    """Returns the model for images of `size`, (height, width), which may be symbols.

    A ViT's table of positions has another shape there; all of a Swin stays as it is.

    >>> import vitswin_jax
    >>> at_size(vitswin_jax.create_model("vit_tiny_patch16_224"), (32, 48)).grid
    (2, 3)
    """
    return model.clone(img_size=size) if isinstance(model, ViTFields) else model

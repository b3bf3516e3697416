"""What parameters show by themselves, without an image: filters and position embeddings."""

from __future__ import annotations

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from vitswin_jax.core.types import Params
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.vit import ViT
from vitswin_jax.nn.posemb import create_positions


def patch_filters(
    model: nn.Module, params: Params, *, count: int = 28
) -> Float[np.ndarray, "k p q 3"] | None:
    """Returns the first principal components of the patch embedding's filters (ViT, fig. 7 left).

    At most `count`, each of length 1, its largest entry positive. None where patches are not of
    colours: a hybrid's are of its ResNet's map.
    """
    filters = np.asarray(params["patch_embed"]["proj"]["kernel"], np.float64)  # p q 3 c
    if filters.shape[2] != 3 or (isinstance(model, ViT) and model.resnet_layers is not None):
        return None
    flat = filters.reshape(-1, filters.shape[-1]).T
    components = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:count]
    largest = np.abs(components).argmax(1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return (components * signs[:, None]).reshape(-1, *filters.shape[:3])


def position_embedding(model: nn.Module, params: Params) -> Float[np.ndarray, "h w c"] | None:
    """Returns the embedding of each place of the patch grid that is added to patches, or None.

    A ViT's that stands at its input, learned or fixed, and Swin's with `ape`. A ViT whose blocks
    have their own has none here.
    """
    if isinstance(model, Swin):
        return np.asarray(params["absolute_pos_embed"])[0] if model.ape else None
    if model.pos_embed in ("none", "relative") or model.pos_embed_at == "every":
        return None
    positions = create_positions(
        lambda name, *_: params[name],
        kind=model.pos_embed,
        grid=model.grid,
        prefix=model.num_prefix_tokens,
        embed_prefix=not model.no_embed_class,
        embed_dim=model.embed_dim,
        num_heads=model.num_heads,
    )
    patches = np.asarray(positions)[0, model.num_prefix_tokens :]
    return patches.reshape(*model.grid, -1)

"""Pictures of parameters, which need no image: filters and position embeddings."""

from __future__ import annotations

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from vitswin_jax.core.types import Params
from vitswin_jax.models.geometry import geometry_of


def patch_filters(
    model: nn.Module, params: Params, *, count: int = 28
) -> Float[np.ndarray, "k p q 3"] | None:
    """Returns the first principal components of the patch embedding's filters (ViT, fig. 7 left).

    At most `count`, each of length 1, its largest entry positive. None where patches are not of
    colours: a hybrid's are of its ResNet's map.
    """
    path = geometry_of(model).filters
    if path is None or model.in_chans != 3:
        return None
    filters = np.asarray(flatten_dict(params, sep="/")[path], np.float64)  # p q 3 c
    flat = filters.reshape(-1, filters.shape[-1]).T
    components = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:count]
    largest = np.abs(components).argmax(1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return (components * signs[:, None]).reshape(-1, *filters.shape[:3])


def position_embedding(model: nn.Module, params: Params) -> Float[np.ndarray, "h w c"] | None:
    """Returns the embedding that is added to each patch of the grid, or None.

    A ViT has it at its input, learned or fixed, and a Swin with `ape`. A ViT whose blocks each have
    their own has none here.
    """
    positions = geometry_of(model).positions
    return None if positions is None else np.asarray(positions(params))

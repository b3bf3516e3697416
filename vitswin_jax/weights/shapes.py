"""Shapes and sizes that follow from a model's fields, and buffers that the originals store."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from vitswin_jax.core.types import Shapes
from vitswin_jax.models.geometry import geometry_of
from vitswin_jax.models.unlabelled import with_encoder
from vitswin_jax.nn.attention import MASKED
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.posemb import relative_bias_index
from vitswin_jax.nn.relative import log_spaced_coordinates
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.nn.windows import relative_position_index, shifted_window_mask
from vitswin_jax.weights.adapt import Sizes


@functools.lru_cache(maxsize=128)
def parameter_shapes(model: nn.Module) -> Shapes:
    """Returns the flat names of a model's parameters, in loop layout, with their shapes."""
    height, width = pair(model.img_size)
    images = jax.ShapeDtypeStruct((1, height, width, model.in_chans), jnp.float32)
    # A scan traces one block; the loop would trace all of them.
    scanned = with_encoder(model, scan=True)

    def init(key: jax.Array, images: jax.Array) -> Any:
        return unstack_blocks(scanned.init(key, images)["params"])

    params = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), images)
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def sizes_of(model: nn.Module) -> Sizes:
    """Returns the sizes of a model that do not follow from the shapes of its parameters."""
    geometry = geometry_of(model)
    windows = {block.stage: block.cut.window_size for block in geometry.blocks if block.cut}
    return Sizes(geometry.grid, tuple(windows.values()), model.num_classes, model.in_chans)


def window_buffers(model: nn.Module, kind: str) -> dict[str, np.ndarray]:
    """Returns buffers that the originals store in files, by the names of our blocks.

    They follow from the model's sizes; "" is the place of one that all blocks share. `kind` is
    "relative_position_index", of Swins and BEiTs, "relative_coords_table" or "attn_mask".
    """
    arrays = {}
    if getattr(model, "pos_embed", None) == "relative":
        index = relative_bias_index(model.grid, model.num_prefix_tokens).astype(np.int64)
        each = [f"block_{i}" for i in range(model.depth)]
        return dict.fromkeys(each if model.pos_embed_at == "every" else [""], index)
    for block, cut in ((block, block.cut) for block in geometry_of(model).blocks if block.cut):
        window, shift = cut.window_size, cut.shift
        if kind == "relative_position_index":
            array = relative_position_index(window).astype(np.int64)
        elif kind == "relative_coords_table":
            before = pair(model.pretrained_window_sizes[block.stage])
            table = log_spaced_coordinates(window, before)
            array = table.reshape(1, 2 * window[0] - 1, 2 * window[1] - 1, 2)
        elif any(shift):
            height, width = (n + -n % side for n, side in zip(block.size, window, strict=True))
            may_attend = shifted_window_mask((height, width), window_size=window, shift=shift)
            array = np.where(may_attend, 0.0, MASKED).astype(np.float32)
        else:
            continue
        arrays[block.name] = array
    return arrays

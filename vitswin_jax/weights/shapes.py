"""What of a model follows from its fields alone: shapes, sizes, and the buffers others store."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from vitswin_jax.core.types import Shapes
from vitswin_jax.models.masked import MaskedModel
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swinv2 import log_spaced_coordinates
from vitswin_jax.nn.attention import MASKED
from vitswin_jax.nn.blocks import unstack_blocks
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.windows import fit_window, relative_position_index, shifted_window_mask
from vitswin_jax.weights.adapt import Sizes


@functools.lru_cache(maxsize=8)  # a file's own model is most often the one that is wanted
def parameter_shapes(model: nn.Module) -> Shapes:
    """Returns the flat names of a model's parameters, in loop layout, with their shapes."""
    height, width = pair(model.img_size)
    images = jax.ShapeDtypeStruct((1, height, width, model.in_chans), jnp.float32)
    # Which traces one block where the loop would trace all.
    masked = isinstance(model, MaskedModel)
    scanned = model.with_encoder(scan=True) if masked else model.clone(scan=True)

    def init(key: jax.Array, images: jax.Array) -> Any:
        return unstack_blocks(scanned.init(key, images)["params"])

    params = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), images)
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def sizes_of(model: nn.Module) -> Sizes:
    """Returns what the shapes of a model's parameters do not tell."""
    windows = ()
    if isinstance(model, Swin):
        stages = zip(model.resolutions, model.window_sizes, strict=True)
        windows = tuple(fit_window(*s, window_clip=model.window_clip)[0] for s in stages)
    grid = model.resolutions[0] if isinstance(model, Swin) else model.grid
    return Sizes(grid, windows, model.num_classes, model.in_chans)


def swin_buffers(model: Swin, kind: str) -> dict[str, np.ndarray]:
    """Returns what the originals store of a Swin though it follows from sizes, by our blocks.

    `kind` is "relative_position_index", "relative_coords_table" or "attn_mask".
    """
    arrays = {}
    windows = sizes_of(model).windows
    for stage, depth in enumerate(model.depths):
        window, resolution = windows[stage], model.resolutions[stage]
        shift = fit_window(resolution, model.window_sizes[stage], window_clip=model.window_clip)[1]
        for block in range(depth):
            if kind == "attn_mask":
                if not (block % 2 and any(shift)):
                    continue
                padded = (n + -n % side for n, side in zip(resolution, window, strict=True))
                may_attend = shifted_window_mask(*padded, window_size=window, shift=shift)
                array = np.where(may_attend, 0.0, MASKED).astype(np.float32)
            elif kind == "relative_position_index":
                array = relative_position_index(window).astype(np.int64)
            else:
                before = pair(model.pretrained_window_sizes[stage])
                table = log_spaced_coordinates(window, before)
                array = table.reshape(1, 2 * window[0] - 1, 2 * window[1] - 1, 2)
            arrays[f"stage_{stage}/block_{block}"] = array
    return arrays

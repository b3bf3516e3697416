"""A model's own attention weights, and their way back to the image.

Axes: b images, n tokens of a window, h w a layer's map, d channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import scipy.sparse
from einops import rearrange
from flax.traverse_util import flatten_dict
from jaxtyping import Float
from PIL import Image

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.models.geometry import BlockGeometry, Geometry, Tokens, geometry_of
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import relative_position_index


@dataclass(frozen=True, kw_only=True)
class LayerAttention(BlockGeometry):
    """Attention weights of one block, and the place of its tokens."""

    weights: Float[np.ndarray, "b windows heads n n"]
    """A row for each query; it sums to 1."""
    position_bias: Float[np.ndarray, "heads n n"] | None = None


@dataclass(frozen=True)
class Attention:
    """The attention of all blocks to some images, and how the last one's tokens are pooled."""

    layers: tuple[LayerAttention, ...]
    pooling: Float[np.ndarray, "b n"]
    """The share of each of the last layer's tokens in what the head reads."""
    query: int | None
    """The token that alone is read, the class token; None where tokens are averaged."""


def attention_maps(
    model: nn.Module, variables: Mapping[str, Params], images: Float[np.ndarray, "b h w c"]
) -> Attention:
    """Returns the attention weights that a model gives to normalised images.

    The model's own forward pass, in evaluation, gives them, whatever its `attn_impl`. Variables
    may be in loop or scan layout. Raises UserError for a model without attention.
    """
    geometry = geometry_of(model, images.shape[1:3])
    if geometry.attention is None:
        raise UserError(f"{type(model).__name__} has no attention to show.")
    model = model.clone(scan=False, remat="none")
    variables = {"params": unstack_blocks(variables["params"])}
    sown = jax.device_get(_sown(model, variables, images))
    layers = []
    for block in geometry.blocks:
        found = sown[block.name, geometry.attention]
        weights = found["attention"] if block.cut else found["attention"][:, None]
        bias = found.get("position_bias")
        layers.append(LayerAttention(**vars(block), weights=weights, position_bias=bias))
    return Attention(tuple(layers), *_pooling(geometry, sown, len(images)))


@functools.partial(jax.jit, static_argnums=0)
def _sown(model: nn.Module, variables: Mapping[str, Params], images: jax.Array) -> dict[Any, Any]:
    """Returns the intermediates of each module, by (block, module): {"attention": ..., ...}."""
    state = model.apply(variables, images, mutable=["intermediates"])[1]
    sown: dict[Any, Any] = {}
    if "intermediates" in state:
        for (*block, module, what), (value,) in flatten_dict(state["intermediates"]).items():
            sown.setdefault(("/".join(block), module), {})[what] = value
    return sown


def _pooling(
    geometry: Geometry, sown: Mapping[Any, Any], images: int
) -> tuple[Float[np.ndarray, "b n"], int | None]:
    """Returns each token's share in what the head reads, and the token that alone is read."""
    last, pooling = geometry.blocks[-1], geometry.pooling
    if pooling.attention is not None:
        weights = sown["", pooling.attention]["attention"].mean(1)[:, 0].astype(np.float64)
        unread = last.num_tokens - weights.shape[1]  # the prefix, or nothing
        return np.pad(weights, ((0, 0), (unread, 0))), None
    share = np.zeros(last.num_tokens)
    share[: pooling.tokens] = (1 - pooling.patches) / max(pooling.tokens, 1)
    share[last.prefix :] += pooling.patches / (last.num_tokens - last.prefix)
    return np.tile(share, (images, 1)), None if pooling.patches else 0


def stitch(
    weights: Float[np.ndarray, "windows n n"], tokens: Tokens, *, num_tokens: int
) -> scipy.sparse.csr_array:
    """Returns the attention within windows as one matrix (query, key) over the layer's tokens.

    `tokens` says where the windows' tokens stand, shifted or not. What goes to padding is left out,
    so that a row may sum to less than 1.
    """
    real = tokens >= 0
    pairs = real[:, :, None] & real[:, None, :]
    queries = np.broadcast_to(tokens[:, :, None], pairs.shape)[pairs]
    keys = np.broadcast_to(tokens[:, None, :], pairs.shape)[pairs]
    return scipy.sparse.csr_array(
        (weights[pairs].astype(np.float64), (queries, keys)), shape=(num_tokens, num_tokens)
    )


def merging(size: Size) -> scipy.sparse.csr_array:
    """Returns patch merging as a matrix: each token the mean of its four, fewer on odd maps."""
    h, w = size
    merged = (np.arange(h) // 2)[:, None] * -(-w // 2) + np.arange(w) // 2
    ones = np.ones(h * w)
    return _rows_to_one(scipy.sparse.csr_array((ones, (merged.ravel(), np.arange(h * w)))))


def _rows_to_one(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    total = np.maximum(matrix.sum(1), 1e-30)  # a row of zeros: all of it went to padding
    return scipy.sparse.diags_array(1 / total) @ matrix


def transitions(
    attention: Attention, image: int, *, residual: float = 0.5
) -> list[scipy.sparse.csr_array]:
    """Returns the matrices whose product is the rollout of one image, the first layer's first.

    A layer is (1 - residual) times its heads' mean plus `residual` times the identity, its rows
    brought to 1 (attention rollout, arXiv:2005.00928, section 3); between Swin's stages stands
    `merging`. Each is (tokens after the layer, tokens before it).
    """
    matrices = []
    layers = attention.layers
    for before, layer in zip(layers[:1] + layers[:-1], layers, strict=True):
        if before.size != layer.size:
            matrices.append(merging(before.size))
        mean = layer.weights[image].mean(1)
        mixed = stitch(mean, layer.tokens, num_tokens=layer.num_tokens)
        identity = scipy.sparse.eye_array(layer.num_tokens)
        matrices.append(_rows_to_one((1 - residual) * _rows_to_one(mixed) + residual * identity))
    return matrices


def rollout(attention: Attention, *, residual: float = 0.5) -> Float[np.ndarray, "b h w"]:
    """Returns each patch's share in what the head reads, by the product of all `transitions`.

    From the head to the image, so that it is vectors times sparse matrices. A map sums to 1, less
    what a ViT's prefix tokens keep.
    """
    maps = []
    first = attention.layers[0]
    for image, pooled in enumerate(attention.pooling):
        matrices = transitions(attention, image, residual=residual)
        share = functools.reduce(lambda row, matrix: row @ matrix, reversed(matrices), pooled)
        maps.append(share[first.prefix :].reshape(first.size))
    return np.stack(maps)


def on_image(
    heat: Float[np.ndarray, "h w"], *, stride: Size, size: Size
) -> Float[np.ndarray, "H W"]:
    """Returns a map on the image plane: `stride` pixels a place, interpolated, cut to `size`.

    The cut is of what pads an image to whole patches, at the bottom and the right; where a model
    leaves pixels out there, the map repeats its edge.
    """
    height, width = (side * step for side, step in zip(heat.shape, stride, strict=True))
    plane = Image.fromarray(heat.astype(np.float32))
    plane = plane.resize((width, height), Image.Resampling.BILINEAR)
    cut = np.asarray(plane)[: size[0], : size[1]]
    beyond = [(0, whole - side) for whole, side in zip(size, cut.shape, strict=True)]
    return np.pad(cut, beyond, mode="edge")


def received(
    layer: LayerAttention, *, query: int | None = None
) -> Float[np.ndarray, "b heads h w"]:
    """Returns how much attention each place of a layer's map is paid by the token `query`.

    By default by all tokens of the map on average, stitched back from Swin's windows.
    """
    real = layer.tokens >= 0
    asks = layer.tokens == query if query is not None else layer.tokens >= layer.prefix
    paid = np.einsum("bwhqk,wq->bhwk", layer.weights, asks / asks.sum())
    places = np.zeros((*paid.shape[:2], layer.num_tokens))
    places[:, :, layer.tokens[real]] = paid[:, :, real]
    return places[:, :, layer.prefix :].reshape(*paid.shape[:2], *layer.size)


def mean_attention_distance(layer: LayerAttention) -> Float[np.ndarray, "b heads"]:
    """Returns how many pixels away each head looks: the mean over queries (ViT, fig. 7 right).

    Attention to tokens that lie nowhere, a prefix or padding, is left out, and rows brought to 1.
    """
    lies = layer.tokens >= layer.prefix
    places = np.stack(np.divmod(layer.tokens - layer.prefix, layer.size[1]), -1) * layer.stride
    apart = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1)
    weights = layer.weights * lies[:, None, None, :]
    total = np.maximum(weights.sum(-1), 1e-30)
    distance = np.einsum("bwhqk,wqk->bwhq", weights, apart) / total
    return np.einsum("bwhq,wq->bh", distance, lies / lies.sum())


def relative_bias_maps(layer: LayerAttention) -> Float[np.ndarray, "heads H W"] | None:
    """Returns the bias of each head by the place of the key relative to the query.

    The query is at the centre of (2 height - 1) x (2 width - 1) places. None where the layer has no
    position biases. Swin's table and what Swin V2's network makes of offsets look the same here.
    """
    if layer.position_bias is None:
        return None
    bias = layer.position_bias[:, layer.prefix :, layer.prefix :]
    pairs = np.unique(relative_position_index(layer.window), return_index=True)[1]
    # Rows run over the query's place less the key's; turned round, a map shows keys where they lie.
    rows = bias.reshape(len(bias), -1)[:, pairs[::-1]]
    return rearrange(rows, "heads (h w) -> heads h w", w=2 * layer.window[1] - 1)

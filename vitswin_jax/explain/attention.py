"""A model's own attention weights, and their way back to the image.

Axes: b images, n tokens of a window, h w a layer's map, d channels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from einops import rearrange
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Int
from PIL import Image

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.models.resnet import total_stride
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swin_block import SwinBlock
from vitswin_jax.models.vit import ViT
from vitswin_jax.nn.blocks import unstack_blocks
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.windows import Cut, Size, map_windows, relative_position_index

Tokens = Int[np.ndarray, "windows n"]


@dataclass(frozen=True)
class LayerAttention:
    """One block's attention, and where its tokens lie.

    A layer's tokens are numbered: a ViT's prefix, then the places of the map, row-major. `tokens`
    has the numbers of each window's, -1 for padding. A ViT is one window of all its tokens.
    """

    name: str
    """The block's, such as "block_3" or "stage_1/block_0"."""
    weights: Float[np.ndarray, "b windows heads n n"]
    """A row for each query; it sums to 1."""
    position_bias: Float[np.ndarray, "heads n n"] | None
    tokens: Tokens
    prefix: int
    size: Size
    """The map's, (height, width) in tokens."""
    window: Size
    stride: Size
    """Pixels from one place of the map to the next, (down, across)."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the layer has, without padding."""
        return self.prefix + self.size[0] * self.size[1]


@dataclass(frozen=True)
class Attention:
    """The attention of all blocks to some images, and how the last one's tokens are pooled."""

    layers: tuple[LayerAttention, ...]
    pooling: Float[np.ndarray, "b n"]
    """The share of each of the last layer's tokens in what the head reads."""
    query: int | None
    """The token that alone is read, the class token; None where tokens are averaged."""


def attention_maps(
    model: nn.Module, variables: Mapping[str, Params], images: Float[np.ndarray, "b h w 3"]
) -> Attention:
    """Returns the attention weights of a ViT or Swin (not Swin-MLP) to normalised images.

    They come out of the model's own forward pass, in evaluation, whatever its `attn_impl`.
    Variables may be in loop or scan layout. Raises UserError for a model without attention.
    """
    model = model.clone(scan=False, remat="none")
    variables = {"params": unstack_blocks(variables["params"])}
    sown = jax.device_get(_sown(model, variables, images))
    if not sown:
        raise UserError(f"{type(model).__name__} has no attention to show.")
    vit = isinstance(model, ViT)
    geometry = _vit_geometry(model) if vit else _swin_geometry(model, images.shape)
    layers = []
    for block, where in geometry.items():
        weights = sown[block, "attn"]["attention"]
        windowed = weights[:, None] if weights.ndim == 4 else weights
        bias = sown[block, "attn"].get("position_bias")
        layers.append(LayerAttention(block, windowed, bias, **where))
    return Attention(tuple(layers), *_pooling(model, sown, layers[-1], len(images)))


@functools.partial(jax.jit, static_argnums=0)
def _sown(model: nn.Module, variables: Mapping[str, Params], images: jax.Array) -> dict[Any, Any]:
    """Returns what each module left, by (block, module): {"attention": ..., ...}."""
    state = model.apply(variables, images, mutable=["intermediates"])[1]
    sown: dict[Any, Any] = {}
    if "intermediates" in state:
        for (*block, module, what), (value,) in flatten_dict(state["intermediates"]).items():
            sown.setdefault(("/".join(block), module), {})[what] = value
    return sown


def _vit_geometry(model: ViT) -> dict[str, dict[str, Any]]:
    grid, prefix = model.grid, model.num_prefix_tokens
    tokens = np.arange(prefix + grid[0] * grid[1])[None]
    where = {"size": grid, "window": grid, "stride": patch_pixels(model)}
    return {f"block_{i}": {**where, "tokens": tokens, "prefix": prefix} for i in range(model.depth)}


@functools.lru_cache(maxsize=8)
def _swin_geometry(model: Swin, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Returns where each block's tokens lie: what the blocks are called with, on no numbers."""
    found: dict[str, dict[str, Any]] = {}
    patch = patch_pixels(model)

    def note(call, args, kwargs, context):
        block = context.module
        if isinstance(block, SwinBlock) and context.method_name == "mix_windows":
            stage, size = int(block.path[0].removeprefix("stage_")), args[0].shape[1:3]
            tokens = window_tokens(
                size,
                window_size=block.cut.window_size,
                shift=block.cut.shift,
                pad_before_roll=block.cut.pad_before_roll,
            )
            found["/".join(block.path)] = {
                "size": size,
                "window": block.cut.window_size,
                "stride": (patch[0] << stage, patch[1] << stage),
                "tokens": tokens,
                "prefix": 0,
            }
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        jax.eval_shape(model.init, jax.random.key(0), images)
    return found


def patch_pixels(model: ViT | Swin) -> Size:
    """Returns how many pixels (height, width) a patch has: with a hybrid's ResNet, strides wide."""
    stride = 1
    if isinstance(model, ViT) and model.resnet_layers is not None:
        stride = total_stride(model.resnet_layers)
    height, width = pair(model.patch_size)
    return height * stride, width * stride


def window_tokens(
    size: Size, *, window_size: Size, shift: Size, pad_before_roll: bool
) -> Int[np.ndarray, "windows n"]:
    """Returns which token of a map stands where in its (shifted) windows, -1 for padding.

    The numbers go the model's own way: they are cut into windows like a map of one channel.
    """
    numbers = np.arange(1, size[0] * size[1] + 1, dtype=np.float32).reshape(1, *size, 1)
    seen = []

    def note(windows, mask):
        del mask
        seen.append(windows)
        return windows

    with jax.ensure_compile_time_eval():
        map_windows(
            note,
            jnp.asarray(numbers),
            Cut(window_size, shift, pad_before_roll),
        )
        return np.asarray(seen[0])[0, :, :, 0].astype(int) - 1


def _pooling(
    model: ViT | Swin, sown: Mapping[Any, Any], last: LayerAttention, images: int
) -> tuple[Float[np.ndarray, "b n"], int | None]:
    """Returns each token's share in what the head reads, and the token that alone is read."""
    n = last.num_tokens
    patches = (np.arange(n) >= last.prefix) / (n - last.prefix)
    first = np.eye(n)
    if isinstance(model, Swin) or model.global_pool == "avg":
        share, query = patches, None
    elif model.global_pool == "map":
        return sown["", "attn_pool"]["attention"].mean(1)[:, 0].astype(np.float64), None
    elif model.global_pool == "token_avg":
        share, query = (first[0] + patches) / 2, None
    else:
        heads = 2 if model.dist_token and model.dist_head else 1
        share, query = first[:heads].mean(0), 0
    return np.tile(share, (images, 1)), query


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
    `merging`. Each is (tokens behind, tokens before).
    """
    matrices = []
    for before, layer in itertools.pairwise((None, *attention.layers)):
        if before is not None and before.size != layer.size:
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

    The cut is of what pads an image to whole patches, at the bottom and the right.
    """
    height, width = (side * step for side, step in zip(heat.shape, stride, strict=True))
    plane = Image.fromarray(heat.astype(np.float32))
    plane = plane.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(plane)[: size[0], : size[1]]


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
    """Returns what each head adds to a logit by the key's place relative to the query's.

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

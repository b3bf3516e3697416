"""Masked image modelling's files: SimMIM's ViT, and the decoders beside encoders of any family.

Sources: microsoft/SimMIM, microsoft/Swin-Transformer, facebookresearch/mae. An encoder is read by
the rules of its family; a decoder, which only further pre-training needs, by the rules here.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.read import Contents
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources import vit_fields
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, vector
from vitswin_jax.weights.sources.preprocess import beit_preprocess
from vitswin_jax.weights.sources.roots import Root
from vitswin_jax.weights.sources.rules import Rule, affine, gather, match, norm
from vitswin_jax.weights.sources.source import (
    Fields,
    Hints,
    Named,
    Source,
    count,
    only,
    patch_fields,
    square,
)
from vitswin_jax.weights.sources.vit_rules import TIMM_RULES

TABLE = "relative_position_bias_table"
MAE_HEADS = 16  # of every published decoder (models_mae.py)
MASK_PATCH = 32  # as every SimMIM was trained


# fmt: off
_QKV = tuple(f"blocks.{{i}}.attn.{part}_bias" for part in "qkv")
_SIMMIM_VIT_RULES = (
    Rule(_QKV,                                    "block_{i}/attn/qkv/bias",           vector),
    Rule("blocks.{i}.gamma_{k}",                  "block_{i}/ls{k}/gamma"),
    *(rule for rule in TIMM_RULES if rule.ours != "block_{i}/attn/qkv/bias"),
    Rule(f"rel_pos_bias.{TABLE}",                 TABLE),
    Rule(f"blocks.{{i}}.attn.{TABLE}",            f"block_{{i}}/{TABLE}"),
    Rule("{p:.*}relative_position_index",         None),
)
_SIMMIM_RULES = (
    Rule("encoder.mask_token",                    "mask_token"),
    *affine("decoder.0.",                          "decoder/", conv),
)
_BLOCK, _BLOCK_ = "decoder_blocks.{i}.", "decoder/block_{i}/"
_MAE_RULES = (
    Rule("mask_token",                            "mask_token"),
    *affine("decoder_{p:embed|pred}.",             "decoder/{p}/"),
    *norm("decoder_norm.",                         "decoder/norm/"),
    *norm(_BLOCK + "{n:norm[12]}.",                _BLOCK_ + "{n}/"),
    *affine(_BLOCK + "attn.qkv.",                  _BLOCK_ + "attn/qkv/", dense, vector),
    *affine(_BLOCK + "attn.proj.",                 _BLOCK_ + "attn/proj/", dense_out),
    *affine(_BLOCK + "mlp.{f:fc[12]}.",            _BLOCK_ + "mlp/{f}/"),
    Rule("decoder_pos_embed",                     None),                     # fixed: recomputed
)
# fmt: on


def with_key_bias(tensors: Tensors, *, query: str, key: str) -> dict[str, Tensor]:
    """Returns the tensors with biases of zero for keys, which have none there.

    `query` and `key` are how the names of these biases end.
    """
    kept = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(query):
            zeros = np.zeros(tensor.shape, np.float32)
            kept[name.removesuffix(query) + key] = Tensor.of(zeros)
    return kept


def describe_simmim_vit(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a SimMIM ViT's fields; heads and size are in its tables of relative biases.

    Before fine-tuning, patches are pooled, for the class token's output was never trained.
    """
    places = {"shared": TABLE, "every": f"block_0/{TABLE}"}
    found = next(((at, named[name][0]) for at, name in places.items() if name in named), None)
    if found is None:
        return vit_fields.describe_vit(named, tensors, hints)
    at, table = found
    pool = hints.get("global_pool", "avg")
    width = patch_fields(named, torch=True)["embed_dim"]  # whose heads the table shows
    own = {"embed_dim": width, "num_heads": table.shape[1]}
    hints = hints.with_fields(**own, global_pool=pool, pos_embed="none")
    fields = vit_fields.describe_vit(named, tensors, hints)
    size = table_size(table.shape[0] - 3, fields, hints)
    return fields | {"pos_embed": "relative", "pos_embed_at": at, "img_size": size}


def table_size(rows: int, fields: Fields, hints: Hints) -> int | tuple[int, int]:
    """Returns the image size whose grid has so many offsets: one that is known, or a square.

    Raises UserError where neither has.
    """
    patch = pair(fields["patch_size"])
    side = square(rows)
    length = 0 if side is None else (side + 1) // 2
    sizes = [(length * patch[0], length * patch[1])] if length else []
    for size in (hints.get("img_size"), *sizes, hints.asked.get("img_size")):
        if size is None:
            continue
        height, width = (own // p for own, p in zip(pair(size), patch, strict=True))
        if (2 * height - 1) * (2 * width - 1) == rows:
            height, width = pair(size)
            return height if height == width else (height, width)
    raise UserError(
        f"{TABLE} has {rows} rows of offsets, which are of no square grid; give img_size=."
    )


def without_key_bias(arrays: dict[str, np.ndarray], *, key: str) -> dict[str, np.ndarray]:
    """Returns the arrays without the biases of keys, which training moves and nothing depends on.

    Such a bias adds the same number to all logits of a query, and the softmax is as before.
    """
    return {name: array for name, array in arrays.items() if not name.endswith(key)}


_QUERY, _KEY = ".attn.q_bias", ".attn.k_bias"


def _beit_source(
    name: str,
    format: str,
    *marks: str,
    holds: tuple[Mapping[str, tuple[Any, ...]], ...],
    **own: Any,
) -> Source:
    table = rf"(rel_pos_bias|blocks\.0\.attn)\.{TABLE}"
    beit = {"pos_embed": ("relative",), "pos_embed_at": ("every", "shared")}
    return Source(
        name=name,
        format=format,
        family="vit",
        marks=(r"blocks\.0\.attn\.q_bias", r"patch_embed\.proj\.weight", table, *marks),
        rules=_SIMMIM_VIT_RULES,
        describe=describe_simmim_vit,
        numerics={"act": "gelu", "norm_eps": 1e-6},
        prepare=lambda tensors: (with_key_bias(tensors, query=_QUERY, key=_KEY), []),
        bias_table=resize.geometric,
        preprocess=beit_preprocess,
        holds=tuple(only("init_values", **beit, **each) for each in holds),
        restore=functools.partial(without_key_bias, key=_KEY),
        **own,
    )


SOURCES = (
    _beit_source(
        "Microsoft (SimMIM)",
        "microsoft",
        r".*relative_position_index|mask_token",
        holds=(
            {"global_pool": ("avg",), "fc_norm": (True,)},
            {"global_pool": ("token",)},
            {"global_pool": ("avg", "token"), "num_classes": (0,)},
        ),
        wrapper="model",
        buffers=("relative_position_index",),
    ),
    _beit_source(
        "timm",
        "timm",
        holds=({"global_pool": ("avg", "token"), "fc_norm": (False, True)},),
    ),
)


@dataclass(frozen=True)
class Decoder:
    """A decoder in an original's files: its marks, its rules and its fields."""

    method: str
    format: str
    """As `save_pretrained(format=)` has it: whose encoders stand beside it."""
    marks: tuple[str, ...]
    """Expressions; a file has the decoder where each fits a key of it, in full."""
    rules: tuple[Rule, ...]
    describe: Callable[[Named, Fields], Fields]
    """Returns the method's fields, of tensors under our names and the encoder's fields."""
    encoder_prefix: str = ""
    """What stands before the encoder's names."""
    positions: str | None = None
    """What their files call the decoder's fixed positions, which ours do not have."""

    def take(self, tensors: Tensors) -> Tensors:
        """Returns the tensors that the rules are for, under the names that they have."""
        templates = [part for rule in self.rules for part in rule.parts]
        return {
            name: tensor
            for name, tensor in tensors.items()
            if any(match(template, name) is not None for template in templates)
        }

    def fields(self, tensors: Tensors, encoder: Fields) -> Fields:
        """Returns the arguments of `create_pretraining` besides the encoder."""
        return {"method": self.method, **self.describe(gather(tensors, self.rules), encoder)}


@dataclass(frozen=True)
class DecoderWeights:
    """The decoder of a weights file: what pre-training needs besides the encoder."""

    fields: Mapping[str, Any]
    """The arguments of `create_pretraining` besides the encoder, as far as the file shows them."""
    tensors: Tensors
    """The parameters that are not the encoder's."""


def _describe_simmim(named: Named, encoder: Fields) -> Fields:
    """Returns the side of what is hidden, which no file shows: the published, where that fits."""
    del named
    patch, size = (
        (side, side) if isinstance(side, int) else side
        for side in (encoder["patch_size"], encoder["img_size"])
    )
    side = math.gcd(MASK_PATCH, *size)
    return {"mask_patch": patch[0] if any(side % p for p in patch) else side}


def _describe_mae(named: Named, encoder: Fields) -> Fields:
    del encoder
    width = named["decoder/embed/bias"][0].size
    if width % MAE_HEADS:
        raise UserError(
            f"the file does not show the decoder's heads, and its width, {width}, is no multiple "
            f"of the {MAE_HEADS} of every published one."
        )
    return {
        "decoder_dim": width,
        "decoder_depth": count(named, "decoder/block_{}/norm1/bias"),
        "decoder_heads": MAE_HEADS,
    }


DECODERS = (
    Decoder(
        method="simmim",
        format="microsoft",
        marks=(r"encoder\.mask_token", r"decoder\.0\.weight"),
        rules=_SIMMIM_RULES,
        describe=_describe_simmim,
        encoder_prefix="encoder.",
    ),
    Decoder(
        method="mae",
        format="timm",
        marks=(r"mask_token", r"decoder_blocks\.0\.attn\.qkv\.weight"),
        rules=_MAE_RULES,
        describe=_describe_mae,
        positions="decoder_pos_embed",
    ),
)


def find_decoder(contents: Contents, root: Root) -> tuple[Decoder, Tensors] | None:
    """Returns the source of the decoder beside an encoder, and its tensors; None: unknown."""
    for decoder in DECODERS:
        if not root.path.endswith(decoder.encoder_prefix):
            continue
        whole = root.path.removesuffix(decoder.encoder_prefix)
        tensors = {
            name.removeprefix(whole): tensor
            for name, tensor in contents.tensors.items()
            if name.startswith(whole) and contents.containers.get(name, "") == root.container
        }
        if all(any(re.fullmatch(mark, name) for name in tensors) for mark in decoder.marks):
            return decoder, decoder.take(tensors)
    return None

"""Swin Transformers: names in their files and ours, and the fields that a file shows.

Sources: Microsoft (V1, V2, MLP, MoE) and SimMIM, timm, Hugging Face, and the WZMIAOMIAO tutorial.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitswin_jax.weights import resize
from vitswin_jax.weights.sources import swin_fields
from vitswin_jax.weights.sources.layouts import (
    conv,
    dense,
    dense_out,
    grouped,
    same,
    stacked,
    tokens,
    vector,
)
from vitswin_jax.weights.sources.preprocess import timm_preprocess
from vitswin_jax.weights.sources.rules import Rule, affine, norm
from vitswin_jax.weights.sources.source import BUFFERS, Source
from vitswin_jax.weights.sources.vit_prepare import based

TABLE = "relative_position_bias_table"
INDEX = "{b:relative_position_index|relative_coords_table}"
STAGE_, BLOCK_ = "stage_{i}/", "stage_{i}/block_{j}/"


# fmt: off
def _swin(*, timm: bool = False) -> tuple[Rule, ...]:
    """Returns the table of Microsoft's names, or of timm's: merging and head stand elsewhere."""
    block = "layers.{i}.blocks.{j}."
    down = "layers.{i+1}.downsample." if timm else "layers.{i}.downsample."
    head = "head.fc." if timm else "head."
    return (
        *affine("patch_embed.proj.",           "patch_embed/proj/", conv),
        *norm("patch_embed.norm.",             "patch_embed/norm/"),
        Rule("absolute_pos_embed",             "absolute_pos_embed",              tokens),
        *norm(block + "{n:norm[12]}.",         BLOCK_ + "{n}/"),
        *affine(block + "attn.qkv.",           BLOCK_ + "attn/qkv/", dense, vector),
        *affine(block + "attn.proj.",          BLOCK_ + "attn/proj/", dense_out),
        Rule(block + "attn." + TABLE,          BLOCK_ + "attn/" + TABLE),
        Rule(block + "attn.logit_scale",       BLOCK_ + "attn/logit_scale"),
        Rule(block + "attn.{b:[qv]_bias}",     BLOCK_ + "attn/{b}",               vector),
        *affine(block + "attn.cpb_mlp.0.",     BLOCK_ + "attn/cpb_mlp/fc1/"),
        Rule(block + "attn.cpb_mlp.2.weight",  BLOCK_ + "attn/cpb_mlp/fc2/kernel", dense),
        *affine(block + "spatial_mlp.",        BLOCK_ + "spatial_mlp/", grouped, vector),
        *_experts(block + "mlp._moe_layer."),
        *affine(block + "mlp.{f:fc[12]}.",     BLOCK_ + "mlp/{f}/"),
        *norm(down + "norm.",                  STAGE_ + "downsample/norm/"),
        Rule(down + "reduction.weight",        STAGE_ + "downsample/reduction/kernel", dense),
        *norm("norm.",                         "norm/"),
        Rule(head + "weight",                  "head/kernel",                     dense),
        Rule(head + "bias",                    "head/bias"),
        Rule(block + "{b:attn_mask}",          None),
        Rule(block + "attn." + INDEX,          None),
        Rule("mask_token",                     None),
    )


def _experts(layer: str) -> tuple[Rule, ...]:
    """Returns the table of Tutel's layer: its experts and its router, linear or cosine."""
    experts, gate = layer + "experts.batched_", layer + "gates.0."
    return (
        Rule(experts + "fc1_w",                BLOCK_ + "mlp/fc1_kernel",         stacked),
        Rule(experts + "fc2_w",                BLOCK_ + "mlp/fc2_kernel",         same),
        Rule(experts + "{f:fc[12]_bias}",      BLOCK_ + "mlp/{f}"),
        Rule(gate + "wg.weight",               BLOCK_ + "mlp/router/kernel",      dense),
        *affine(gate + "cosine_projector.",    BLOCK_ + "mlp/router/proj/"),
        Rule(gate + "{p:sim_matrix|temperature}", BLOCK_ + "mlp/router/{p}"),
        Rule(layer + "_num_global_experts",    None),
    )


def _huggingface(prefix: str) -> tuple[Rule, ...]:
    embeddings, block = prefix + "embeddings.", prefix + "encoder.layers.{i}.blocks.{j}."
    attn, down = block + "attention.self.", prefix + "encoder.layers.{i}.downsample."
    qkv = tuple(attn + part for part in ("query", "key", "value"))
    v2 = "2" in prefix
    bias = (
        Rule(qkv[0] + ".bias",                 BLOCK_ + "attn/q_bias",            vector),
        Rule(qkv[2] + ".bias",                 BLOCK_ + "attn/v_bias",            vector),
    ) if v2 else (
        Rule(tuple(part + ".bias" for part in qkv), BLOCK_ + "attn/qkv/bias",     vector),
    )
    cpb = attn + "continuous_position_bias_mlp."
    return (
        *affine(embeddings + "patch_embeddings.projection.", "patch_embed/proj/", conv),
        *norm(embeddings + "norm.",            "patch_embed/norm/"),
        Rule(embeddings + "position_embeddings", "absolute_pos_embed",            tokens),
        Rule(embeddings + "mask_token",        None),
        Rule(tuple(part + ".weight" for part in qkv), BLOCK_ + "attn/qkv/kernel", dense),
        *bias,
        Rule(attn + TABLE,                     BLOCK_ + "attn/" + TABLE),
        Rule(attn + "logit_scale",             BLOCK_ + "attn/logit_scale"),
        *affine(cpb + "0.",                    BLOCK_ + "attn/cpb_mlp/fc1/"),
        Rule(cpb + "2.weight",                 BLOCK_ + "attn/cpb_mlp/fc2/kernel", dense),
        Rule(attn + INDEX,                     None),
        *affine(block + "attention.output.dense.", BLOCK_ + "attn/proj/", dense_out),
        *norm(block + "layernorm_before.",     BLOCK_ + "norm1/"),
        *norm(block + "layernorm_after.",      BLOCK_ + "norm2/"),
        *affine(block + "intermediate.dense.", BLOCK_ + "mlp/fc1/"),
        *affine(block + "output.dense.",       BLOCK_ + "mlp/fc2/"),
        *norm(down + "norm.",                  STAGE_ + "downsample/norm/"),
        Rule(down + "reduction.weight",        STAGE_ + "downsample/reduction/kernel", dense),
        *norm(prefix + "layernorm.",           "norm/"),
        *affine("classifier.",                 "head/"),
    )
# fmt: on


MICROSOFT_RULES = _swin()


@functools.cache
def imagenet_22k_to_1k() -> tuple[int, ...]:
    """Returns the indices of ImageNet-1k's classes in Microsoft's 21841 (its map22kto1k.txt)."""
    text = Path(__file__).with_name("imagenet_22k_to_1k.txt").read_text(encoding="utf-8")
    return tuple(int(word) for word in text.split())


def _head_rows(old: int, new: int) -> Sequence[int] | None:
    return imagenet_22k_to_1k() if (old, new) == (21841, 1000) else None


MICROSOFT = {"act": "gelu", "norm_eps": 1e-5, "window_clip": "min", "pad_before_roll": True}
TIMM = {"act": "gelu", "norm_eps": 1e-5, "window_clip": "per_axis", "pad_before_roll": False}
TUTORIAL = {"act": "gelu", "norm_eps": 1e-5, "window_clip": "never", "pad_before_roll": True}
HUGGINGFACE_V2 = {"window_clip": "per_axis", "mask_value": -200.0}  # its code adds the mask twice
_BLOCK = r"layers\.0\.blocks\.0\."
_V1 = _BLOCK + r"attn\.relative_position_bias_table"
_V2 = _BLOCK + r"attn\.(cpb|rpe)_mlp\.0\.weight"
_MLP = _BLOCK + r"spatial_mlp\.weight"
_MOE = r"layers\.\d+\.blocks\.1\.mlp\._moe_layer\.experts\.batched_fc1_w"
_DESCRIBE = {
    "swin": swin_fields.describe_swin,
    "swinv2": swin_fields.describe_swin_v2,
    "swin_mlp": swin_fields.describe_swin_mlp,
    "swin_moe": swin_fields.describe_swin_moe,
}


def _source(name: str, format: str, family: str, *marks: str, **fields: Any) -> Source:
    return Source(
        name=name,
        format=format,
        family=family,
        marks=marks,
        describe=_DESCRIBE[family],
        **{"prepare": swin_fields.prepare_swin, **fields},
    )


def _microsoft_source(name: str, family: str, *marks: str, **fields: Any) -> Source:
    return _source(
        name,
        "microsoft",
        family,
        *marks,
        **{"rules": _swin(), "numerics": MICROSOFT, "buffers": BUFFERS, **fields},
        head_rows=_head_rows,
        holds=({},),
        wrapper="model",
    )


def _timm_source(family: str, *marks: str) -> Source:
    return _source(
        "timm",
        "timm",
        family,
        *marks,
        rules=_swin(timm=True),
        numerics=TIMM,
        holds=({"ape": (False,)},),
        bias_table=resize.geometric,
        preprocess=timm_preprocess,
    )


def _huggingface_source(prefix: str, mark: str) -> Source:
    v2 = prefix == "swinv2"
    mark = r"encoder\.layers\.0\.blocks\.0\.attention\.self\." + mark
    return _source(
        f"Hugging Face (Swin{' V2' * v2})",
        "huggingface",
        prefix,
        mark,
        rules=_huggingface(prefix + "."),
        numerics=MICROSOFT | (HUGGINGFACE_V2 if v2 else {}),
        prepare=based(prefix + "."),
        base=prefix + ".",
        bare=True,
        holds=({"patch_norm": (True,)},),
        buffers=() if v2 else ("relative_position_index",),
    )


_MASK = r"layers\.\d+\.blocks\.\d+\.attn_mask"
_INDEX = r"layers\.0\.blocks\.0\.attn\.relative_position_index"
_V1_BUFFERS = {"buffers": ("relative_position_index", "attn_mask")}
SOURCES = (
    _timm_source("swin", _V1, r"head\.fc\..*"),
    _timm_source("swinv2", _V2, r"head\.fc\..*"),
    _timm_source("swin", _V1, r"layers\.3\.downsample\..*"),
    _timm_source("swinv2", _V2, r"layers\.3\.downsample\..*"),
    _microsoft_source("Microsoft", "swin", _V1, _MASK, **_V1_BUFFERS),
    _microsoft_source("Microsoft (SimMIM)", "swin", _V1, "mask_token", **_V1_BUFFERS),
    _source(
        "Microsoft (detection)",
        "tutorial",
        "swin",
        _V1,
        r"norm\d\.weight",
        rules=_swin(),
        numerics=TUTORIAL,
    ),
    _source("tutorial", "tutorial", "swin", _V1, _INDEX, rules=_swin(), numerics=TUTORIAL),
    _microsoft_source("Microsoft", "swin", _V1, **_V1_BUFFERS),
    _microsoft_source("Microsoft (MLP)", "swin_mlp", _MLP, buffers=()),
    _microsoft_source(
        "Microsoft (MoE)",
        "swin_moe",
        _MOE,
        numerics=MICROSOFT | {"capacity_over": "batch"},
        prepare=swin_fields.prepare_swin_moe,
        restore=swin_fields.restore_swin_moe,
    ),
    _microsoft_source("Microsoft (V2)", "swinv2", _V2),
    _huggingface_source("swin", "relative_position_bias_table"),
    _huggingface_source("swinv2", r"continuous_position_bias_mlp\.0\.weight"),
)

"""DINOv3's files beside ours: Meta's own (EUPE's too) and transformers'. timm's are in `vit.py`.

Keys have no bias. Meta's files have three thirds of one, of which a mask hides the keys'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.rotary import Rotary
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, vector
from vitswin_jax.weights.sources.rules import Rule, affine, norm
from vitswin_jax.weights.sources.source import (
    IMAGENET,
    SOME,
    UNSEEN,
    Fields,
    Hints,
    Named,
    Prepared,
    Source,
    only,
    query_value_biases,
)
from vitswin_jax.weights.sources.vit_fields import PERIODS, describe_vit

ROTARY: Mapping[str, Any] = {
    "rope_type": "centred", "rope_temperature": 100.0, "rope_rotate_half": True,
}  # fmt: skip
NUMERICS: Mapping[str, Any] = {"act": "gelu", "norm_eps": 1e-5, **UNSEEN, **ROTARY}

# fmt: off
BLOCK, BLOCK_ = "blocks.{i}.", "block_{i}/"
META_RULES = (
    *affine("patch_embed.proj.",                "patch_embed/proj/", conv),
    Rule("cls_token",                          "cls_token"),
    Rule("storage_tokens",                     "reg_token"),
    *norm(BLOCK + "{n:norm[12]}.",              BLOCK_ + "{n}/"),
    *affine(BLOCK + "attn.qkv.",                BLOCK_ + "attn/qkv/", dense, vector),
    Rule(BLOCK + "attn.{b:[qv]_bias}",         BLOCK_ + "attn/{b}",                vector),
    *affine(BLOCK + "attn.proj.",               BLOCK_ + "attn/proj/", dense_out),
    Rule(BLOCK + "ls{k}.gamma",                BLOCK_ + "ls{k}/gamma"),
    *affine(BLOCK + "mlp.{f:fc[12]}.",          BLOCK_ + "mlp/{f}/"),
    *affine((BLOCK + "mlp.w1.", BLOCK + "mlp.w2."), BLOCK_ + "mlp/fc1/", beside=True),
    *affine(BLOCK + "mlp.w3.",                  BLOCK_ + "mlp/fc2/"),
    *norm("norm.",                              "norm/"),
    *affine("head.",                            "head/"),
    Rule("mask_token",                         None),
    Rule(PERIODS,                              None),
    Rule("{p:(local_cls_norm|projectors)[.].*}", None),  # of training: local crops, distillation
)
LAYER, ATTN = "layer.{i}.", "layer.{i}.attention."
QKV = tuple(f"{ATTN}{part}_proj." for part in "qkv")
MLP = "layer.{i}.mlp."
HUGGINGFACE_RULES = (
    *affine("embeddings.patch_embeddings.",     "patch_embed/proj/", conv),
    Rule("embeddings.cls_token",               "cls_token"),
    Rule("embeddings.register_tokens",         "reg_token"),
    Rule("embeddings.mask_token",              None),
    *norm(LAYER + "{n:norm[12]}.",              BLOCK_ + "{n}/"),
    *affine(QKV,                                BLOCK_ + "attn/qkv/", dense, vector),
    Rule(ATTN + "{p:[qkv]}_proj.bias",         BLOCK_ + "attn/{p}_bias",           vector),
    *affine(ATTN + "o_proj.",                   BLOCK_ + "attn/proj/", dense_out),
    Rule(LAYER + "layer_scale{k}.lambda1",     BLOCK_ + "ls{k}/gamma"),
    *affine(MLP + "down_proj.",                 BLOCK_ + "mlp/fc2/"),
    *norm("norm.",                              "norm/"),
)
GATED_MLP = affine((MLP + "gate_proj.", MLP + "up_proj."), BLOCK_ + "mlp/fc1/", beside=True)
PLAIN_MLP = affine(MLP + "up_proj.",            BLOCK_ + "mlp/fc1/")
# fmt: on


def _describe_meta(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns the fields; the periods of the rotation are rounded as those of the file are."""
    fields = _describe(named, tensors, hints)
    return fields | {"rope_dtype": _rounding(tensors[PERIODS])}


def _rounding(periods: Tensor) -> str:
    """Returns the dtype to which a file's periods are rounded; published ones are bfloat16.

    Raises UserError for periods of another temperature.
    """
    array = periods.read().astype(np.float32)
    if not array.any():  # a stand-in
        return "bfloat16"
    for dtype in ("bfloat16", "float32"):
        own = Rotary(**{k.removeprefix("rope_"): x for k, x in ROTARY.items()}, dtype=dtype)
        if np.allclose(own.periods(4 * array.size), array, rtol=1e-6):
            return dtype
    raise UserError(
        f"its {PERIODS} go from {array[0]:g} to {array[-1]:g}, which are not those of DINOv3 "
        "(rope_temperature=100)."
    )


def _describe(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns the fields of DINOv3, whose own code reads the class token."""
    pool = hints.stated.get("global_pool", "token")
    return describe_vit(named, tensors, hints.with_fields(global_pool=pool, pos_embed="none"))


def _prepare_meta(tensors: Tensors) -> Prepared:
    """Returns biases of queries and values alone, where a mask hides those of keys."""
    prepared: dict[str, Tensor] = dict(tensors)
    for name in tensors:
        if not name.endswith(".attn.qkv.bias_mask"):
            continue
        del prepared[name]
        joint = name.removesuffix("_mask")
        prepared |= query_value_biases(joint.removesuffix("qkv.bias"), prepared.pop(joint))
    return prepared, []


REGISTERS = "embeddings.register_tokens"


def _prepare_huggingface(tensors: Tensors) -> Prepared:
    """Returns the tensors without registers where there are 0 of them."""
    return {n: t for n, t in tensors.items() if n != REGISTERS or t.size}, []


def _restore_huggingface(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays with a mask token, which no classifier reads: zeros; and 0 registers."""
    token = arrays["embeddings.cls_token"]
    own = {"embeddings.mask_token": np.zeros_like(token), REGISTERS: token[:, :0]}
    return own | arrays


def _huggingface_source(*marks: str, mlp: tuple[Rule, ...], **holds: Any) -> Source:
    held = only(
        "qkv_bias", "proj_bias", "mlp_bias", "reg_tokens", "rope_temperature",
        rope_type=("centred",), rope_rotate_half=(True,), init_values=(SOME,),
        global_pool=("token",), num_classes=(0,), pos_embed=("none",), **holds,
    )  # fmt: skip
    return Source(
        name="Hugging Face (DINOv3)",
        format="huggingface",
        family="vit",
        marks=(r"layer\.0\.attention\.q_proj\.weight", *marks),
        rules=(*HUGGINGFACE_RULES, *mlp),
        describe=_describe,
        numerics=NUMERICS,
        prepare=_prepare_huggingface,
        preprocess=IMAGENET,
        holds=(held,),
        restore=_restore_huggingface,
    )


SOURCES = (
    Source(
        name="DINOv3",
        format="dinov3",
        family="vit",
        marks=(r"blocks\.0\.attn\.qkv\.weight", re.escape(PERIODS)),
        rules=META_RULES,
        describe=_describe_meta,
        numerics=NUMERICS,
        prepare=_prepare_meta,
        preprocess=IMAGENET,
    ),
    _huggingface_source(
        r"layer\.0\.mlp\.gate_proj\.weight", mlp=GATED_MLP, act=("swiglu", "geglu")
    ),
    _huggingface_source(mlp=PLAIN_MLP),
)

"""AIMv2's files beside ours: transformers' and Apple's own. timm's are in `vit.py`.

A model for images of any size has no table of positions: its code computes them. transformers'
image-text model projects what the pool gives, which is our head with a bias of zeros, as CLIP's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, row, unbatched, vector
from vitswin_jax.weights.sources.rules import Rule, affine, norm
from vitswin_jax.weights.sources.source import (
    CLIP,
    UNSEEN,
    Fields,
    Hints,
    Named,
    Prepared,
    Source,
    only,
    patch_fields,
)
from vitswin_jax.weights.sources.towers import with_bias
from vitswin_jax.weights.sources.vit_fields import describe_vit

COMPUTED = "sincos2d_mae"
HEADS = {1024: 8, 1536: 12, 2048: 16, 3072: 24}
"""Embedding width to heads of the published sizes, each of 128 channels."""
NUMERICS: Mapping[str, Any] = {**UNSEEN, "norm_eps": 1e-5, "norm_layer": "rmsnorm"}

# fmt: off
LAYER, BLOCK_ = "encoder.layers.{i}.", "block_{i}/"
QKV = tuple(f"{LAYER}attention.{part}_proj." for part in "qkv")
GATES = (LAYER + "ffn.gate_proj.", LAYER + "ffn.up_proj.")
HUGGINGFACE_RULES = (
    *affine("embeddings.patch_embed.",          "patch_embed/proj/", conv),
    *norm("embeddings.rms_norm.",               "patch_embed/norm/"),
    Rule("embeddings.position_embedding.weight", "pos_embed",                      unbatched),
    Rule("embeddings.position_ids",            None),
    *norm(LAYER + "rms_norm{k}.",               BLOCK_ + "norm{k}/"),
    *affine(QKV,                                BLOCK_ + "attn/qkv/", dense, vector),
    *affine(LAYER + "attention.out_proj.",      BLOCK_ + "attn/proj/", dense_out),
    *affine(GATES,                              BLOCK_ + "mlp/fc1/", beside=True),
    *affine(LAYER + "ffn.down_proj.",           BLOCK_ + "mlp/fc2/"),
    *norm("rms_norm.",                          "norm/"),
    Rule("head.cls_token",                     "attn_pool/latent",                 row),
    *affine(("head.k_proj.", "head.v_proj."),   "attn_pool/kv/", dense, vector),
    *affine("head.output_proj.",                "attn_pool/proj/", dense_out),
    *affine("visual_projection.",               "head/"),
)
TRUNK = "trunk.blocks.{i}."
APPLE_RULES = (
    *affine("preprocessor.patchifier.proj.",    "patch_embed/proj/", conv),
    *norm("preprocessor.patchifier.norm.",      "patch_embed/norm/"),
    Rule("preprocessor.pos_embed",             "pos_embed"),
    *norm(TRUNK + "norm_{k}.",                  BLOCK_ + "norm{k}/"),
    *affine(TRUNK + "attn.qkv.",                BLOCK_ + "attn/qkv/", dense, vector),
    *affine(TRUNK + "attn.proj.",               BLOCK_ + "attn/proj/", dense_out),
    *affine((TRUNK + "mlp.fc1.", TRUNK + "mlp.fc3."), BLOCK_ + "mlp/fc1/", beside=True),
    *affine(TRUNK + "mlp.fc2.",                 BLOCK_ + "mlp/fc2/"),
    *norm("trunk.post_trunk_norm.",             "norm/"),
)
# fmt: on


def _describe(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns AIMv2's fields; positions that no table has are computed."""
    width = patch_fields(named, torch=True)["embed_dim"]
    own: dict[str, Any] = {"norm_layer": "rmsnorm"}
    if "num_heads" not in hints and width in HEADS:
        own |= {"num_heads": HEADS[width], "embed_dim": width}
    if "pos_embed" not in named:
        own["pos_embed"] = COMPUTED
    return describe_vit(named, tensors, hints.with_fields(**own))


def _with_projection_bias(tensors: Tensors) -> Prepared:
    """Returns the tensors with a bias of zeros for the projection of an image-text model."""
    kept = dict(tensors)
    with_bias(kept, "visual_projection.weight", "visual_projection.bias", axis=0)
    return kept, []


def _holds(**biases: tuple[Any, ...]) -> Mapping[str, tuple[Any, ...]]:
    return only(
        "mlp_bias", act=("swiglu", "geglu"), norm_layer=("rmsnorm",), patch_norm=(True,),
        class_token=(False,), global_pool=("query", "avg"), pos_embed=("learned", COMPUTED),
        num_classes=(0,), **biases,
    )  # fmt: skip


SOURCES = (
    Source(
        name="Hugging Face (AIMv2)",
        format="huggingface",
        family="vit",
        marks=(r"encoder\.layers\.0\.rms_norm1\.weight",),
        rules=HUGGINGFACE_RULES,
        describe=_describe,
        numerics=NUMERICS,
        prepare=_with_projection_bias,
        pos_embed=resize.bicubic_antialiased,
        preprocess=CLIP,
        holds=(
            _holds(qkv_bias=(False,), proj_bias=(False,)),
            _holds(qkv_bias=(True,), proj_bias=(True,)),
        ),
    ),
    Source(
        name="AIMv2",
        format="aimv2",
        family="vit",
        marks=(r"trunk\.blocks\.0\.norm_1\.weight",),
        rules=APPLE_RULES,
        describe=_describe,
        numerics=NUMERICS,
        pos_embed=resize.bicubic_antialiased,
        preprocess=CLIP,
    ),
)

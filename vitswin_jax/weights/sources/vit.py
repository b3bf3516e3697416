"""Vision Transformers: names in their files and ours, and the fields that a file shows.

Sources: google-research/vision_transformer and big_vision (npz); timm, and DeiT, DINOv2, MAE and
the WZMIAOMIAO tutorial, whose names are the same; Hugging Face.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vitswin_jax.weights import resize
from vitswin_jax.weights.sources import vit_fields
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, map_vector, row, vector
from vitswin_jax.weights.sources.preprocess import timm_preprocess
from vitswin_jax.weights.sources.rules import Rule, affine, norm
from vitswin_jax.weights.sources.source import HALF, IMAGENET, SOME, UNSEEN, Source, only

# fmt: off
BLOCK, BLOCK_ = "blocks.{i}.", "block_{i}/"
MLP, MLP_ = BLOCK + "mlp.", BLOCK_ + "mlp/"
QKV = tuple(BLOCK + f"attn.{part}_proj." for part in "qkv")
_JOINT_QKV = affine(BLOCK + "attn.qkv.",           BLOCK_ + "attn/qkv/", dense, vector)
_APART_QKV = (
    *affine(QKV,                                   BLOCK_ + "attn/qkv/", dense, vector),
    Rule(BLOCK + "attn.{p:[qkv]}_proj.bias",      BLOCK_ + "attn/{p}_bias",            vector),
)
_QV_BIAS = (Rule(BLOCK + "attn.{p:[qkv]}_bias",   BLOCK_ + "attn/{p}_bias",            vector),)
_JOINT_MLP = affine(MLP + "fc1.",                  MLP_ + "fc1/")
_APART_MLP = affine((MLP + "fc1_g.", MLP + "fc1_x."), MLP_ + "fc1/", beside=True)
_LS = (Rule(BLOCK + "ls{k}.gamma",                BLOCK_ + "ls{k}/gamma"),)
_GAMMA = (Rule(BLOCK + "gamma_{k}",               BLOCK_ + "ls{k}/gamma"),)  # DeiT-3, EVA
_REST = (
    *affine("patch_embed.proj.",                   "patch_embed/proj/", conv),
    *norm("patch_embed.norm.",                     "patch_embed/norm/"),
    Rule("{t:(cls|dist|reg)_token|pos_embed}",    "{t}"),
    *norm(BLOCK + "{n:norm[12]}.",                 BLOCK_ + "{n}/"),
    *norm(BLOCK + "attn.{n:([qk]_)?norm}.",        BLOCK_ + "attn/{n}/"),
    *affine(BLOCK + "attn.proj.",                  BLOCK_ + "attn/proj/", dense_out),
    Rule(BLOCK + "rope.freqs",                    BLOCK_ + "rope_freqs"),
    *norm(MLP + "norm.",                           MLP_ + "norm/"),
    *affine(MLP + "fc2.",                          MLP_ + "fc2/"),
    *affine(MLP + "w12.",                          MLP_ + "fc1/"),  # DINOv2-g
    *affine(MLP + "w3.",                           MLP_ + "fc2/"),
    *norm("{n:norm|fc_norm|norm_pre}.",            "{n}/"),
    Rule("attn_pool.latent",                      "attn_pool/latent",                  row),
    *affine("attn_pool.{p:q|kv}.",                 "attn_pool/{p}/", dense, vector),
    *affine("attn_pool.proj.",                     "attn_pool/proj/", dense_out),
    *norm("attn_pool.norm.",                       "attn_pool/norm/"),
    *affine("attn_pool.mlp.{f:fc[12]}.",           "attn_pool/mlp/{f}/"),
    *affine("pre_logits.fc.",                      "pre_logits/"),
    *affine("{h:head|head_dist}.",                 "{h}/"),
    # Of pre-training: MAE's decoder, heads of MoCo v3, DINO, iBOT and MSN, BEiT's head and layers,
    # and the pyramids of segmenters.
    Rule("{m:mask_token|masked_embed}",           None),
    Rule("{d:(decoder|lm_head|cls_pt_layers)[._].*}", None),
    Rule("{d:head[.]([0-9]+|(mlp|last_layer)[0-9]*)[.].*}", None),
    Rule("{d:(fc|fpn[1-4])[.].*}",                None),
)
# All are read by each table; the first rule of ours is written.
TIMM_RULES = (*_LS, *_GAMMA, *_JOINT_QKV, *_APART_QKV, *_QV_BIAS, *_JOINT_MLP, *_APART_MLP, *_REST)
EVA_RULES = (*_GAMMA, *_JOINT_QKV, *_QV_BIAS, *_JOINT_MLP, *_APART_MLP, *_REST)
EVA_GATED_RULES = (*_GAMMA, *_JOINT_QKV, *_QV_BIAS, *_APART_MLP, *_REST)
EVA_APART_RULES = (*_GAMMA, *_APART_QKV, *_QV_BIAS, *_APART_MLP, *_JOINT_MLP, *_REST)


def _timm_hybrid(stem: str) -> tuple[Rule, ...]:
    """Returns timm's table with the ResNet's rows; its stem stands elsewhere if it is alone."""
    unit, unit_ = "patch_embed.backbone.stages.{i}.blocks.{j}.", "backbone/stage_{i}/block_{j}/"
    return (
        *TIMM_RULES,
        Rule(stem + "conv.weight",             "backbone/root_conv/kernel",            conv),
        *norm(stem + "norm.",                      "backbone/root_norm/"),
        Rule(unit + "conv{k}.weight",          unit_ + "conv{k}/kernel",               conv),
        *norm(unit + "norm{k}.",                   unit_ + "norm{k}/"),
        Rule(unit + "downsample.conv.weight",  unit_ + "downsample_conv/kernel",       conv),
        *norm(unit + "downsample.norm.",           unit_ + "downsample_norm/"),
    )


def huggingface_rules(
    prefix: str, *, dinov2: bool = False, gated: bool = False, head: str
) -> tuple[Rule, ...]:
    """Returns the table of a transformers class, whose base model stands under `prefix`."""
    layer, attn = prefix + "encoder.layer.{i}.", prefix + "encoder.layer.{i}.attention.attention."
    embeddings = prefix + "embeddings."
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    mlp = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
    mlp = ("mlp.weights_in", "mlp.weights_out") if gated else mlp
    qkv = tuple(attn + part for part in ("query.", "key.", "value."))
    return (
        *affine(embeddings + "patch_embeddings.projection.", "patch_embed/proj/", conv),
        Rule(embeddings + "cls_token",                     "cls_token"),
        Rule(embeddings + "distillation_token",            "dist_token"),
        Rule(embeddings + "register_tokens",               "reg_token"),
        Rule(embeddings + "position_embeddings",           "pos_embed"),
        Rule(embeddings + "mask_token",                    None),
        *affine(qkv,                               BLOCK_ + "attn/qkv/", dense, vector),
        *affine(layer + "attention.output.dense.", BLOCK_ + "attn/proj/", dense_out),
        Rule(layer + "layer_scale{k}.lambda1",             BLOCK_ + "ls{k}/gamma"),
        *norm(prefix + "layernorm.",               "norm/"),
        *affine(prefix + "pooler.dense.",          "pre_logits/"),
        *affine(f"{head}.",                        "head/"),
        *affine("distillation_classifier.",        "head_dist/"),
        *norm(f"{layer}{norms[0]}.",               BLOCK_ + "norm1/"),
        *affine(f"{layer}{mlp[0]}.",               BLOCK_ + "mlp/fc1/"),
        *norm(f"{layer}{norms[1]}.",               BLOCK_ + "norm2/"),
        *affine(f"{layer}{mlp[1]}.",               BLOCK_ + "mlp/fc2/"),
    )


def _google(*, linen: bool) -> tuple[Rule, ...]:
    """Returns Google's table; both numberings are read, and the one asked for is written."""
    rules = []
    for attention, second, mlp in ((0, 1, 0), (1, 2, 3))[:: 1 if linen else -1]:
        block = "Transformer/encoderblock_{i}/"
        attn = f"{block}MultiHeadDotProductAttention_{attention}/"
        qkv = (attn + "query/", attn + "key/", attn + "value/")
        rules += [
            Rule(block + "LayerNorm_0/{p:scale|bias}",       BLOCK_ + "norm1/{p}"),
            Rule(f"{block}LayerNorm_{second}/{{p:scale|bias}}", BLOCK_ + "norm2/{p}"),
            Rule(tuple(part + "{p:kernel|bias}" for part in qkv), BLOCK_ + "attn/qkv/{p}"),
            Rule(attn + "out/{p:kernel|bias}",               BLOCK_ + "attn/proj/{p}"),
            Rule(f"{block}MlpBlock_{mlp}/Dense_0/{{p:kernel|bias}}", BLOCK_ + "mlp/fc1/{p}"),
            Rule(f"{block}MlpBlock_{mlp}/Dense_1/{{p:kernel|bias}}", BLOCK_ + "mlp/fc2/{p}"),
        ]
    unit, unit_ = "block{i+1}/unit{j+1}/", "backbone/stage_{i}/block_{j}/"
    pool = "MAPHead_0/MultiHeadDotProductAttention_0/"
    places = ["pos_embedding", "Transformer/posembed_input/pos_embedding"]
    return (
        *rules,
        *(Rule(place, "pos_embed") for place in places[:: 1 if linen else -1]),
        Rule("embedding/{p:kernel|bias}",                    "patch_embed/proj/{p}"),
        Rule("cls",                                          "cls_token"),
        Rule("Transformer/encoder_norm/{p:scale|bias}",      "norm/{p}"),
        Rule("MAPHead_0/probe",                              "attn_pool/latent",           row),
        Rule(pool + "query/{p:kernel|bias}",                 "attn_pool/q/{p}"),
        Rule((pool + "key/{p}", pool + "value/{p:kernel|bias}"), "attn_pool/kv/{p}"),
        Rule(pool + "out/{p:kernel|bias}",                   "attn_pool/proj/{p}"),
        Rule("MAPHead_0/LayerNorm_0/{p:scale|bias}",         "attn_pool/norm/{p}"),
        Rule("MAPHead_0/MlpBlock_0/Dense_0/{p:kernel|bias}", "attn_pool/mlp/fc1/{p}"),
        Rule("MAPHead_0/MlpBlock_0/Dense_1/{p:kernel|bias}", "attn_pool/mlp/fc2/{p}"),
        Rule("conv_root/kernel",                             "backbone/root_conv/kernel"),
        Rule("gn_root/{p:scale|bias}",                       "backbone/root_norm/{p}", map_vector),
        Rule(unit + "conv{k}/kernel",                        unit_ + "conv{k}/kernel"),
        Rule(unit + "gn{k}/{p:scale|bias}",                  unit_ + "norm{k}/{p}", map_vector),
        Rule(unit + "conv_proj/kernel",                      unit_ + "downsample_conv/kernel"),
        Rule(unit + "gn_proj/{p:scale|bias}",          unit_ + "downsample_norm/{p}", map_vector),
        Rule("pre_logits/{p:kernel|bias}",                   "pre_logits/{p}"),
        Rule("head/{p:kernel|bias}",                         "head/{p}"),
    )
# fmt: on


def _huggingface_source(
    name: str,
    base: str,
    *marks: str,
    holds: tuple[Mapping[str, tuple[Any, ...]], ...] = (),
    root: str = "",
    **options: Any,
) -> Source:
    dinov2, registers = options.get("dinov2", False), "registers" in base
    return Source(
        name=f"Hugging Face ({name})",
        format="huggingface",
        family="vit",
        marks=marks,
        rules=huggingface_rules(base, **options),
        describe=functools.partial(vit_fields.describe_vit, no_embed_class=registers),
        numerics={"act": "gelu", "norm_eps": 1e-6 if dinov2 else 1e-12},
        prepare=vit_fields.based(base),
        pos_embed=resize.bicubic_antialiased if registers else resize.bicubic,
        preprocess=IMAGENET if dinov2 or base == "deit." else HALF,
        holds=holds,
        root=root,
        base=base,
        bare=True,
        restore=functools.partial(vit_fields.restore_dinov2, base) if dinov2 else dict,
    )


_BIG_VISION = (
    only(
        "pre_logits", "resnet_layers", pos_embed=("learned", "sincos2d"), class_token=(False,),
        global_pool=("avg", "map"),
    ),
    only("pre_logits", "resnet_layers", no_embed_class=(True,)),
)  # fmt: skip


def _timm_holds(**allowed: tuple[Any, ...]) -> tuple[Mapping[str, tuple[Any, ...]], ...]:
    """Returns the fields that timm's VisionTransformer, and its DeiT with two heads, can compute.

    Patches without a bias come with a norm before the blocks only.
    """
    free = (
        "init_values", "fc_norm", "act", "norm_layer", "qk_norm", "scale_attn_norm",
        "scale_mlp_norm", "final_norm",
    )  # fmt: skip
    allowed = {"qkv_bias": (True, False), **allowed}
    bare = {"proj_bias": (False,), "mlp_bias": (False,)}
    others = ("reg_tokens", "no_embed_class", "class_token", "norm_at", "pool_include_prefix")
    plain = (*free, *others)
    pools = {"global_pool": ("token", "avg", "max", "avgmax", "map"), **allowed}
    return (
        only(*plain, **pools),
        only(*plain, **{**pools, **bare}),
        only(*plain, **pools, pre_norm=(True,), patch_bias=(False, True)),
        only(*free, **allowed, dist_token=(True,)),
    )


def _eva_holds(**allowed: tuple[Any, ...]) -> tuple[Mapping[str, tuple[Any, ...]], ...]:
    """Returns the fields of timm's Eva: EVA, EVA-02, DINOv3, RoPE-ViT, Perception Encoder."""
    pools = {
        "global_pool": ("token", "avg", "max", "avgmax", "map"),
        "pos_embed": ("learned", "none"),
        "rope_dtype": ("float32",),
        "act": ("gelu", "swiglu"),
        "qkv_bias": (True, False, "qv"),
        **allowed,
    }
    free = (
        *(name for name in UNSEEN if name.startswith("rope_")), "init_values", "fc_norm",
        "final_norm", "reg_tokens", "no_embed_class", "class_token", "pool_heads",
        "pool_mlp_ratio", "pool_include_prefix", "scale_attn_norm", "norm_at", "qk_norm",
    )  # fmt: skip
    return (
        only(*free, **pools),
        only(*free, **pools, pre_norm=(True,), patch_bias=(False,)),
    )


def _google_source(name: str, *marks: str, linen: bool) -> Source:
    return Source(
        name=f"Google ({name})",
        format="google",
        family="vit",
        marks=marks,
        rules=_google(linen=linen),
        describe=vit_fields.describe_google,
        numerics={"act": "gelu_tanh", "norm_eps": 1e-6},
        prepare=vit_fields.prepare_google,
        pos_embed=resize.corner_linear,
        preprocess=HALF,
        holds=_BIG_VISION if linen else (only("pre_logits", "resnet_layers"),),
        prefix="params/" if linen else "",
    )


def _timm_source(*marks: str, rules: tuple[Rule, ...] = TIMM_RULES, **fields: Any) -> Source:
    defaults: dict[str, Any] = {
        "name": "timm",
        "numerics": {"act": "gelu", "norm_eps": 1e-6, **UNSEEN},
        "pos_embed": resize.bicubic_antialiased,
        "preprocess": timm_preprocess,
        "marks": (r"blocks\.(0\.)?0\.attn\.qkv\.weight", *marks),
    }
    return Source(
        format="timm",
        family="vit",
        rules=rules,
        describe=vit_fields.describe_timm,
        prepare=vit_fields.prepare_timm,
        restore=vit_fields.restore_timm,
        **{**defaults, **fields},
    )


NORM1, LAYERNORM = (
    r"encoder\.layer\.0\.norm1\.weight",
    r"encoder\.layer\.0\.layernorm_before\.weight",
)
REGISTERS, DISTILLATION = r"embeddings\.register_tokens", r"embeddings\.distillation_token"
CLASSIFIER = r"classifier\.weight"
_DINOV2 = {"global_pool": ("token", "token_avg"), "init_values": (SOME,)}
_REGISTERS = _DINOV2 | {"reg_tokens": (SOME,), "no_embed_class": (True,)}
PATCHES = r"patch_embed\.proj\.weight"
LAYER_SCALE = r"blocks\.(0\.)?0\.(ls1\.gamma|gamma_1)"
GATED = r"encoder\.layer\.0\.mlp\.weights_in\.weight"
_GATED = {"act": ("swiglu",)}
_CLASS_TOKEN_ALONE = {"dist_token": (True,), "dist_head": (False,)}
SOURCES = (
    _google_source(
        "vision_transformer", "Transformer/posembed_input/pos_embedding", linen=False
    ),
    _google_source("big_vision", "Transformer/encoderblock(_0)?/.*", linen=True),
    _huggingface_source(
        "DINOv2 with registers", "dinov2_with_registers.", NORM1, REGISTERS, GATED, dinov2=True,
        gated=True, head="classifier", holds=(only("qkv_bias", **_REGISTERS, **_GATED),),
    ),
    _huggingface_source(
        "DINOv2", "dinov2.", NORM1, GATED, dinov2=True, gated=True, head="classifier",
        holds=(only("qkv_bias", **_DINOV2, **_GATED),),
    ),
    _huggingface_source(
        "DINOv2 with registers", "dinov2_with_registers.", NORM1, REGISTERS, dinov2=True,
        head="classifier", holds=(only("qkv_bias", **_REGISTERS),),
    ),
    _huggingface_source(
        "DINOv2", "dinov2.", NORM1, dinov2=True, head="classifier",
        holds=(only("qkv_bias", **_DINOV2),),
    ),
    _huggingface_source(
        "DeiT", "deit.", LAYERNORM, DISTILLATION, CLASSIFIER, head="classifier",
        holds=(only("qkv_bias", **_CLASS_TOKEN_ALONE),),
    ),
    _huggingface_source(
        "DeiT", "deit.", LAYERNORM, DISTILLATION, head="cls_classifier",
        holds=(
            only("qkv_bias", dist_token=(True,)),
            only("qkv_bias", **_CLASS_TOKEN_ALONE, num_classes=(0,), pre_logits=(SOME,)),
        ),
    ),
    _huggingface_source("DeiT", "deit.", LAYERNORM, head="classifier", root="deit."),
    _huggingface_source(
        "ViT", "vit.", LAYERNORM, head="classifier",
        holds=(only("qkv_bias"), only("qkv_bias", "pre_logits", num_classes=(0,))),
    ),
    _timm_source(
        r"patch_embed\.backbone\.stem\.conv\.weight",
        rules=_timm_hybrid("patch_embed.backbone.stem."),
        holds=_timm_holds(resnet_layers=(SOME,)),
    ),
    _timm_source(
        r"patch_embed\.backbone\.conv\.weight",
        rules=_timm_hybrid("patch_embed.backbone."),
        holds=_timm_holds(resnet_layers=((),)),
    ),
    # DINOv2's own files: timm's, which have the same names, have no mask token.
    _timm_source(
        PATCHES, LAYER_SCALE, "mask_token", "register_tokens", name="DINOv2 with registers",
    ),
    _timm_source(
        PATCHES, LAYER_SCALE, "mask_token", name="DINOv2", pos_embed=resize.bicubic_by_scale,
    ),
    _timm_source(  # AIMv2
        PATCHES, r"blocks\.0\.mlp\.fc1_g\.weight",
        rules=(*_LS, *_JOINT_QKV, *_QV_BIAS, *_GAMMA, *_APART_MLP, *_REST),
        holds=_timm_holds(act=("swiglu",), norm_layer=("rmsnorm",), patch_norm=(True,)),
    ),
    _timm_source(PATCHES, holds=_timm_holds()),
    _timm_source(
        PATCHES, rules=EVA_RULES,
        holds=(
            *_eva_holds(rope_type=("none", "axial", "mixed")),
            *_eva_holds(act=("gelu",)),
        ),
    ),
    _timm_source(PATCHES, rules=EVA_GATED_RULES, holds=_eva_holds(act=("swiglu",))),
    _timm_source(
        rules=EVA_APART_RULES, marks=(PATCHES, r"blocks\.0\.attn\.q_proj\.weight"),
        holds=_eva_holds(scale_mlp_norm=(True,), act=("swiglu",), qkv_bias=("qv", False)),
    ),
)  # fmt: skip

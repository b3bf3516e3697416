"""Vision Transformers: the originals of their files.

Sources: google-research/vision_transformer and big_vision (npz); timm, and DeiT, DINOv2, MAE and
the WZMIAOMIAO tutorial, whose names are the same; Hugging Face.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vitswin_jax.weights import resize
from vitswin_jax.weights.sources import vit_prepare, vit_rules
from vitswin_jax.weights.sources.preprocess import timm_preprocess
from vitswin_jax.weights.sources.rules import Rule
from vitswin_jax.weights.sources.source import HALF, IMAGENET, SOME, UNSEEN, Source, only
from vitswin_jax.weights.sources.vit_fields import describe_google, describe_timm, describe_vit


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
        rules=vit_rules.huggingface_rules(base, **options),
        describe=functools.partial(describe_vit, no_embed_class=registers),
        numerics={"act": "gelu", "norm_eps": 1e-6 if dinov2 else 1e-12},
        prepare=vit_prepare.based(base),
        pos_embed=resize.bicubic_antialiased if registers else resize.bicubic,
        preprocess=IMAGENET if dinov2 or base == "deit." else HALF,
        holds=holds,
        root=root,
        base=base,
        bare=True,
        restore=functools.partial(vit_prepare.restore_dinov2, base) if dinov2 else dict,
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
        rules=vit_rules.google_rules(linen=linen),
        describe=describe_google,
        numerics={"act": "gelu_tanh", "norm_eps": 1e-6},
        prepare=vit_prepare.prepare_google,
        pos_embed=resize.corner_linear,
        preprocess=HALF,
        holds=_BIG_VISION if linen else (only("pre_logits", "resnet_layers"),),
        prefix="params/" if linen else "",
    )


def _timm_source(
    *marks: str, rules: tuple[Rule, ...] = vit_rules.TIMM_RULES, **fields: Any
) -> Source:
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
        describe=describe_timm,
        prepare=vit_prepare.prepare_timm,
        restore=vit_prepare.restore_timm,
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
        rules=vit_rules.timm_hybrid_rules("patch_embed.backbone.stem."),
        holds=_timm_holds(resnet_layers=(SOME,)),
    ),
    _timm_source(
        r"patch_embed\.backbone\.conv\.weight",
        rules=vit_rules.timm_hybrid_rules("patch_embed.backbone."),
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
        rules=vit_rules.AIMV2_RULES,
        holds=_timm_holds(act=("swiglu",), norm_layer=("rmsnorm",), patch_norm=(True,)),
    ),
    _timm_source(PATCHES, holds=_timm_holds()),
    _timm_source(
        PATCHES, rules=vit_rules.EVA_RULES,
        holds=(
            *_eva_holds(rope_type=("none", "axial", "mixed")),
            *_eva_holds(act=("gelu",)),
        ),
    ),
    _timm_source(PATCHES, rules=vit_rules.EVA_GATED_RULES, holds=_eva_holds(act=("swiglu",))),
    _timm_source(
        rules=vit_rules.EVA_APART_RULES, marks=(PATCHES, r"blocks\.0\.attn\.q_proj\.weight"),
        holds=_eva_holds(scale_mlp_norm=(True,), act=("swiglu",), qkv_bias=("qv", False)),
    ),
)  # fmt: skip

"""torchvision's ViT, Swin and Swin V2: their files' names beside ours.

Its Swins pad a map to whole windows, then roll it, never shrink a window, and do not shift along an
axis that one window covers. Keys of its Swin V2 have a bias that is set to 0 before it is added.
"""

from __future__ import annotations

import re

import numpy as np

from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources import swin, swin_fields
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, vector
from vitswin_jax.weights.sources.rules import Rule, affine, norm, rename
from vitswin_jax.weights.sources.source import (
    BUFFERS,
    IMAGENET,
    UNSEEN,
    Fields,
    Hints,
    Named,
    Prepared,
    Source,
    only,
    query_value_biases,
)
from vitswin_jax.weights.sources.vit_fields import describe_vit

# fmt: off
BLOCK, BLOCK_ = "encoder.layers.encoder_layer_{i}.", "block_{i}/"
VIT_RULES = (
    Rule("class_token",                        "cls_token"),
    *affine("conv_proj.",                       "patch_embed/proj/", conv),
    Rule("encoder.pos_embedding",              "pos_embed"),
    *norm(BLOCK + "ln_{n}.",                    BLOCK_ + "norm{n}/"),
    *affine(BLOCK + "self_attention.in_proj_",  BLOCK_ + "attn/qkv/", dense, vector),
    *affine(BLOCK + "self_attention.out_proj.", BLOCK_ + "attn/proj/", dense_out),
    *affine(BLOCK + "mlp.0.",                   BLOCK_ + "mlp/fc1/"),
    *affine(BLOCK + "mlp.3.",                   BLOCK_ + "mlp/fc2/"),
    *affine(BLOCK + "mlp.linear_{f}.",          BLOCK_ + "mlp/fc{f}/"),            # before 0.13
    *norm("encoder.ln.",                        "norm/"),
    *affine("heads.pre_logits.",                "pre_logits/"),
    *affine("heads.head.",                      "head/"),
)
# fmt: on

_NAMES = (  # theirs, Microsoft's; a stage's number is half of that of its blocks or of its merging
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
_PLACE = re.compile(r"features\.(\d+)\.(.*)")


def _prepare_swin(tensors: Tensors) -> Prepared:
    """Returns Microsoft's names, and of V2 biases of queries and values alone."""
    renamed: dict[str, Tensor] = {}
    v2 = any(name.endswith(".attn.logit_scale") for name in tensors)
    for name, tensor in rename(tensors, _NAMES).items():
        own = name
        if found := _PLACE.fullmatch(name):
            number, rest = int(found[1]), found[2]
            stage = (number - 1) // 2
            own = f"layers.{stage}." + (f"blocks.{rest}" if number % 2 else f"downsample.{rest}")
        if v2 and own.endswith(".attn.qkv.bias"):
            renamed |= query_value_biases(own.removesuffix("qkv.bias"), tensor)
        else:
            renamed[own] = tensor
    return renamed, []


def _restore_swin(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns Microsoft's names as torchvision's, with a bias of 0 for V2's keys."""
    restored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name.endswith(".q_bias"):
            values = arrays[name.replace("q_bias", "v_bias")]
            joint = _as_theirs(name.replace("q_bias", "qkv.bias"))
            restored[joint] = np.concatenate([array, np.zeros_like(array), values])
        elif not name.endswith(".v_bias"):
            flat = name.endswith("relative_position_index")
            restored[_as_theirs(name)] = array.reshape(-1) if flat else array
    return restored


def _as_theirs(name: str) -> str:
    name = re.sub(r"^patch_embed\.(proj|norm)\.", _first, name)
    name = re.sub(r"\.mlp\.fc([12])\.", lambda f: f".mlp.{3 * (int(f[1]) - 1)}.", name)
    if found := re.fullmatch(r"layers\.(\d+)\.(blocks|downsample)\.(.*)", name):
        return f"features.{2 * int(found[1]) + 1 + (found[2] == 'downsample')}.{found[3]}"
    return name


def _first(found: re.Match[str]) -> str:
    return "features.0.0." if found[1] == "proj" else "features.0.2."


def _describe_v2(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a V2's fields; torchvision has none that was made for other windows."""
    stages = {m[1] for name in tensors if (m := re.match(r"layers\.(\d+)\.blocks\.", name))}
    hints = hints.with_fields(pretrained_window_sizes=(0,) * len(stages))
    return swin_fields.describe_swin_v2(named, tensors, hints)


_IMAGES = IMAGENET | {"crop_fraction": 0.875, "interpolation": "bilinear"}
_SWIN = {
    "act": "gelu", "norm_eps": 1e-5, "window_clip": "shift", "pad_before_roll": True,
}  # fmt: skip
_HOLDS = {"ape": (False,), "patch_norm": (True,), "qkv_bias": (True,), "in_chans": (3,)}
_OWN_WINDOWS = {"pretrained_window_sizes": tuple((0,) * stages for stages in (2, 3, 4, 5))}
_QKV = r"features\.1\.0\.attn\.qkv\.weight"


def _swin_source(name: str, family: str, mark: str, **own: object) -> Source:
    fields = {
        "describe": swin_fields.describe_swin, "buffers": BUFFERS[:1], "holds": (_HOLDS,), **own
    }  # fmt: skip
    return Source(
        name=name,
        format="torchvision",
        family=family,
        marks=(_QKV, rf"features\.1\.0\.attn\.{mark}"),
        rules=swin.MICROSOFT_RULES,
        numerics=_SWIN,
        prepare=_prepare_swin,
        restore=_restore_swin,
        preprocess=_IMAGES,
        **fields,  # type: ignore[arg-type]
    )


SOURCES = (
    Source(
        name="torchvision",
        format="torchvision",
        family="vit",
        marks=(r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight",),
        rules=VIT_RULES,
        describe=describe_vit,
        numerics={"act": "gelu", "norm_eps": 1e-6, **UNSEEN},
        pos_embed=resize.bicubic_by_corners,
        preprocess=_IMAGES,
        holds=(only("pre_logits"),),
    ),
    _swin_source("torchvision", "swin", r"relative_position_bias_table"),
    _swin_source(
        "torchvision (V2)", "swinv2", r"cpb_mlp\.0\.weight", describe=_describe_v2,
        buffers=BUFFERS[:2], holds=(_HOLDS | _OWN_WINDOWS,),
    ),
)  # fmt: skip

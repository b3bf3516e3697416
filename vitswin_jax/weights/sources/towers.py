"""Image towers of CLIP and SigLIP: names in their files and ours, and the fields shown.

Sources: open_clip, OpenAI, and Meta's Perception Encoder, a tower of the same names; Hugging Face.
(timm has the same names for a tower as for a ViT: `vit.py`.) A text tower beside the image tower is
left out. CLIP's projection, which has no bias, is our head with a bias of zeros, as in timm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, row, unbatched, vector
from vitswin_jax.weights.sources.rules import Rule, affine, norm
from vitswin_jax.weights.sources.source import (
    CLIP,
    HALF,
    UNSEEN,
    Fields,
    Hints,
    Named,
    Prepared,
    Source,
    only,
)
from vitswin_jax.weights.sources.vit_fields import clip_activation, describe_vit

# fmt: off
BLOCK, BLOCK_ = "transformer.resblocks.{i}.", "block_{i}/"
OPEN_CLIP_RULES = (
    Rule("conv1.weight",                       "patch_embed/proj/kernel",         conv),
    Rule("class_embedding",                    "cls_token",                       vector),
    Rule("positional_embedding",               "pos_embed",                       unbatched),
    *norm("ln_pre.",                           "norm_pre/"),
    *norm(BLOCK + "ln_{n}.",                   BLOCK_ + "norm{n}/"),
    *affine(BLOCK + "attn.in_proj_",           BLOCK_ + "attn/qkv/", dense, vector),
    *affine(BLOCK + "attn.out_proj.",          BLOCK_ + "attn/proj/", dense_out),
    Rule(BLOCK + "ls_{n}.gamma",               BLOCK_ + "ls{n}/gamma"),
    *affine(BLOCK + "mlp.c_fc.",               BLOCK_ + "mlp/fc1/"),
    *affine(BLOCK + "mlp.c_proj.",             BLOCK_ + "mlp/fc2/"),
    *norm("ln_post.",                          "norm/"),
    Rule("attn_pool.probe",                    "attn_pool/latent",                row),
    *affine("attn_pool.attn.q_proj_",          "attn_pool/q/", dense, vector),
    *affine("attn_pool.attn.kv_proj_",         "attn_pool/kv/", dense, vector),
    *affine("attn_pool.attn.out_proj.",        "attn_pool/proj/", dense_out),
    *norm("attn_pool.layernorm.",              "attn_pool/norm/"),
    *affine("attn_pool.mlp.c_fc.",             "attn_pool/mlp/fc1/"),
    *affine("attn_pool.mlp.c_proj.",           "attn_pool/mlp/fc2/"),
    Rule("proj",                               "head/kernel"),
    Rule("proj_bias",                          "head/bias"),
)

MODEL = "vision_model."
LAYER, ATTN = MODEL + "encoder.layers.{i}.", MODEL + "encoder.layers.{i}.self_attn."
EMBEDDINGS, POOL = MODEL + "embeddings.", MODEL + "head."
QKV = tuple(ATTN + f"{part}_proj." for part in "qkv")
HUGGINGFACE_RULES = (
    *affine(EMBEDDINGS + "patch_embedding.",   "patch_embed/proj/", conv),
    Rule(EMBEDDINGS + "class_embedding",       "cls_token",                       vector),
    Rule(EMBEDDINGS + "position_embedding.weight", "pos_embed",                   unbatched),
    Rule(EMBEDDINGS + "position_ids",          None),                             # 0, 1, 2, ...
    *norm(MODEL + "pre_layrnorm.",             "norm_pre/"),
    *norm(LAYER + "layer_norm{n}.",            BLOCK_ + "norm{n}/"),
    *affine(QKV,                               BLOCK_ + "attn/qkv/", dense, vector),
    *affine(ATTN + "out_proj.",                BLOCK_ + "attn/proj/", dense_out),
    *affine(LAYER + "mlp.{f:fc[12]}.",         BLOCK_ + "mlp/{f}/"),
    *norm(MODEL + "post_layernorm.",           "norm/"),
    Rule(POOL + "probe",                       "attn_pool/latent",                row),
    *affine(POOL + "attention.q_proj_",        "attn_pool/q/", dense, vector),
    *affine(POOL + "attention.kv_proj_",       "attn_pool/kv/", dense, vector),
    *affine(POOL + "attention.out_proj.",      "attn_pool/proj/", dense_out),
    *norm(POOL + "layernorm.",                 "attn_pool/norm/"),
    *affine(POOL + "mlp.{f:fc[12]}.",          "attn_pool/mlp/{f}/"),
)
CLIP_RULES = (*HUGGINGFACE_RULES, *affine("visual_projection.", "head/"))
SIGLIP_RULES = (*HUGGINGFACE_RULES, *affine("classifier.", "head/"))
# fmt: on


def _describe_clip(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a CLIP tower's fields; the activation is the hints', for no file shows it."""
    return describe_vit(named, tensors, hints) | {"act": clip_activation(hints)}


def _describe_open_clip(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a tower's fields; those of Perception Encoder are recognised by what every CLIP has.

    Raises UserError for one of them that nothing names, whose rotary positions no tensor shows.
    """
    odd = {
        "it pools by attention": "attn_pool.probe" in tensors,
        "it has no norm after its blocks": "ln_post.weight" not in tensors,
        "it has no class token": "class_embedding" not in tensors,
    }
    if any(odd.values()) and hints.get("rope_type", "none") == "none":
        what = " and ".join(text for text, is_so in odd.items() if is_so)
        raise UserError(
            f"{what}, as Perception Encoder's (rotary positions), not CLIP's; give the name of its "
            "model, as vit_pe_core_base_patch16_224."
        )
    return _describe_clip(named, tensors, hints)


def _divide_pool(tensors: dict[str, Tensor], attention: str) -> None:
    """Divides a pool's fused projection, called `attention`, into the query's and the rest."""
    for kind in ("weight", "bias"):
        fused = tensors.pop(f"{attention}in_proj_{kind}", None)
        if fused is not None:
            width = fused.shape[0] // 3
            tensors[f"{attention}q_proj_{kind}"] = fused.rows(0, width)
            tensors[f"{attention}kv_proj_{kind}"] = fused.rows(width, 3 * width)


def with_bias(tensors: dict[str, Tensor], weight: str, bias: str, *, axis: int) -> None:
    """Adds a bias of zeros to a projection, where it is there."""
    if weight in tensors:
        kernel = tensors[weight]
        tensors[bias] = Tensor.of(np.zeros(kernel.shape[axis], kernel.dtype))


def _without_bias(bias: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns a `restore` that takes the zeros out; raises UserError where they are none."""

    def restore(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if bias in arrays and np.any(arrays[bias]):
            raise UserError(
                "CLIP's projection has no bias, and the model's head has one that is not zero; "
                "write another format, or a model with num_classes=0."
            )
        return {name: array for name, array in arrays.items() if name != bias}

    return restore


def _prepare_open_clip(tensors: Tensors) -> Prepared:
    """Returns the tower's parameters with a bias of zeros for its projection."""
    kept = dict(tensors)
    with_bias(kept, "proj", "proj_bias", axis=1)
    _divide_pool(kept, "attn_pool.attn.")
    return kept, []


def _vision_model(tensors: Tensors) -> dict[str, Tensor]:
    """Returns a vision model's tensors under the names that its tower has beside others."""
    place = re.compile(r"(embeddings|encoder|head|pre_layrnorm|post_layernorm)\.")
    return {MODEL * bool(place.match(name)) + name: tensor for name, tensor in tensors.items()}


def _prepare_clip(tensors: Tensors) -> Prepared:
    if "classifier.weight" in tensors:
        raise UserError(
            "CLIPForImageClassification's head reads the mean of tokens that are not normed, which "
            "no model here does; load the CLIP model it was made from, and train a head."
        )
    kept = _vision_model(tensors)
    with_bias(kept, "visual_projection.weight", "visual_projection.bias", axis=0)
    return kept, []


def _prepare_siglip(tensors: Tensors) -> Prepared:
    """Returns the tower, its pool's fused projection divided; a classifier reads the mean."""
    kept = _vision_model(tensors)
    if "classifier.weight" in kept:
        pool = [name for name in kept if name.startswith(POOL)]
        return {n: t for n, t in kept.items() if n not in pool}, pool
    _divide_pool(kept, POOL + "attention.")
    return kept, []


PATCHES = "embeddings.patch_embedding.weight"


def _prepare_naflex(tensors: Tensors) -> Prepared:
    """Returns SigLIP's tensors: a matrix of patches' pixels, (rows, columns, RGB), as a kernel."""
    matrix = tensors[PATCHES]
    width, pixels = matrix.shape
    side = math.isqrt(pixels // 3)
    if 3 * side * side != pixels:
        raise UserError(f"{PATCHES} reads {pixels} numbers, which are no square patch of RGB.")

    def kernel(array: np.ndarray) -> np.ndarray:
        return array.reshape(width, side, side, 3).transpose(0, 3, 1, 2)

    return _prepare_siglip({**tensors, PATCHES: matrix.map(kernel, (width, 3, side, side))})


def _fuse_pool(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors to write, with the pool's query, key and value in one array."""
    arrays = dict(arrays)
    for kind in ("weight", "bias"):
        names = [f"{POOL}attention.{part}_proj_{kind}" for part in ("q", "kv")]
        if names[0] in arrays:
            fused = np.concatenate([arrays.pop(name) for name in names])
            arrays[f"{POOL}attention.in_proj_{kind}"] = fused
    return arrays


_TOWER = {"class_token": (False,), "patch_bias": (True,)}
SOURCES = (
    Source(
        name="open_clip",
        format="open_clip",
        family="vit",
        marks=(
            r"conv1\.weight",
            r"transformer\.resblocks\.0\.attn\.in_proj_weight",
        ),
        rules=OPEN_CLIP_RULES,
        describe=_describe_open_clip,
        numerics={**UNSEEN, "norm_eps": 1e-5},
        prepare=_prepare_open_clip,
        pos_embed=resize.bicubic_antialiased,
        preprocess=CLIP,
    ),
    Source(
        name="Hugging Face (CLIP)",
        format="huggingface",
        family="vit",
        marks=(r"pre_layrnorm\.weight",),
        rules=CLIP_RULES,
        describe=_describe_clip,
        numerics={"norm_eps": 1e-5},
        prepare=_prepare_clip,
        base=MODEL,
        preprocess=CLIP,
        holds=(only(pre_norm=(True,), patch_bias=(False,)),),
        restore=_without_bias("visual_projection.bias"),
    ),
    Source(  # its positions are resized for each image: here for the model's img_size
        name="Hugging Face (SigLIP 2 NaFlex)",
        format="huggingface",
        family="vit",
        marks=(r"encoder\.layers\.0\.layer_norm1\.weight", re.escape(PATCHES)),
        ranks={PATCHES: 2},
        rules=SIGLIP_RULES,
        describe=describe_vit,
        numerics={"act": "gelu_tanh", "norm_eps": 1e-6},
        prepare=_prepare_naflex,
        pos_embed=resize.bilinear_antialiased,
        preprocess=HALF,
    ),
    Source(
        name="Hugging Face (SigLIP)",
        format="huggingface",
        family="vit",
        marks=(r"encoder\.layers\.0\.layer_norm1\.weight",),
        rules=SIGLIP_RULES,
        describe=describe_vit,
        numerics={"act": "gelu_tanh", "norm_eps": 1e-6},
        prepare=_prepare_siglip,
        base=MODEL,
        preprocess=HALF,
        holds=(
            only(**_TOWER, global_pool=("map",), num_classes=(0,)),
            only(**_TOWER, global_pool=("avg",)),
        ),
        restore=_fuse_pool,
    ),
)

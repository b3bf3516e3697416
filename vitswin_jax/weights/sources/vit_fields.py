"""Fields of a Vision Transformer from its file."""

from __future__ import annotations

from vitswin_jax.core.types import UserError
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.models.resnet import total_stride
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.mlp import GATES
from vitswin_jax.nn.posemb import SINCOS
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.others import refuse_lookalikes
from vitswin_jax.weights.sources.source import (
    Fields,
    Hints,
    Named,
    count,
    patch_fields,
    resnet_fields,
    square,
)

HEADS = {
    **{64 * heads: heads for heads in (3, 4, 5, 6, 8, 10, 12, 13, 14, 16)},
    **dict.fromkeys((1152, 1280, 1408, 1536, 1664), 16),
}
"""Embedding width to heads, as published: a fused qkv does not show them."""

GATED_HEADS = {1536: 24}
"""The same of models with a gated MLP: DINOv2's giant."""

CROPPED = {(1152, 14)}
"""Width and patch of models whose images had more pixels than fill patches: SO400M/14 at 384."""

PERIODS = "rope_embed.periods"
"""A buffer of DINOv3's own files."""


def describe_vit(
    named: Named,
    tensors: Tensors,
    hints: Hints,
    *,
    torch: bool = True,
    no_embed_class: bool | None = None,
    computed_positions: bool = False,
) -> Fields:
    """Returns a ViT's fields from tensors under our names.

    `hints` (facts from beside the tensors, see facts.py) supply what the tensors do not show:
    heads off the published table, the sides of a grid that is no square, token or average pooling.
    Of `no_embed_class`, which a code may leave no choice in, None is what makes the grid a square.
    Only code that has `computed_positions` has any without a table of them. Raises UserError, with
    the candidates, where they do not either.
    """
    fields = patch_fields(named, torch=torch) | resnet_fields(named, torch=torch)
    dim = fields["embed_dim"]
    classes = named["head/bias"][0].size if "head/bias" in named else 0
    fields |= block_fields(named, dim, hints)
    fields |= {
        "num_classes": classes,
        "depth": count(named, "block_{}/norm1/scale"),
        "num_heads": _heads(named, tensors, dim, hints),
        "class_token": "cls_token" in named,
        "dist_token": "dist_token" in named,
        "dist_head": "head_dist/kernel" in named or not _reads_the_class_token_alone(named),
        "reg_tokens": named["reg_token"][0].size // dim if "reg_token" in named else 0,
        "crop_to_patches": (dim, fields["patch_size"]) in CROPPED,
        "patch_bias": "patch_embed/proj/bias" in named,
        "patch_norm": "patch_embed/norm/scale" in named,
        "pre_norm": "norm_pre/scale" in named,
        "fc_norm": "fc_norm/scale" in named,
        "pre_logits": named["pre_logits/bias"][0].size if "pre_logits/bias" in named else None,
    }
    if not {"norm/scale", "fc_norm/scale"} & named.keys():
        fields["final_norm"] = hints.get("final_norm", True)  # a file may be cut off
    fields["global_pool"] = _pool(named, fields, hints)
    if "attn_pool/mlp/fc1/kernel" in named:
        ratio = _width(named, "attn_pool/mlp/fc1/kernel") / dim
        fields["pool_mlp_ratio"] = None if ratio == fields["mlp_ratio"] else ratio
    return fields | _positions(named, fields, hints, no_embed_class, computed_positions)


def block_fields(named: Named, dim: int, hints: Hints) -> Fields:
    """Returns the fields that the first block's tensors show.

    Raises UserError for norms without biases where nothing says of which kind they are.
    """
    biases = "".join(part for part in "qkv" if f"block_0/attn/{part}_bias" in named)
    fields: Fields = {
        "mlp_ratio": _width(named, "block_0/mlp/fc1/kernel") / dim,
        "qkv_bias": "block_0/attn/qkv/bias" in named or biases or False,
        "qk_norm": "block_0/attn/q_norm/scale" in named,
        "scale_attn_norm": "block_0/attn/norm/scale" in named,
        "proj_bias": "block_0/attn/proj/bias" in named,
        "mlp_bias": "block_0/mlp/fc1/bias" in named,
        "scale_mlp_norm": "block_0/mlp/norm/scale" in named,
        "init_values": 1e-5 if "block_0/ls1/gamma" in named else None,
    }
    if "block_0/norm1/bias" in named:
        fields["norm_layer"] = "layernorm"
    elif hints.get("norm_layer") != "rmsnorm":
        raise UserError(
            "its norms have no biases, and it does not show of which kind they are; give a name or "
            "norm_layer='rmsnorm'."
        )
    if _gated(named):
        fields["act"] = hints["act"] if hints.get("act") in GATES else "swiglu"
    return fields


def describe_timm(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns the result of `describe_vit`, with timm's epsilon and activation for CLIP."""
    fields = describe_vit(named, tensors, hints)
    refuse_lookalikes(fields, tensors, hints)
    if fields["pre_norm"]:
        fields["norm_eps"] = hints.get("norm_eps", 1e-5)
    if "act" not in fields:
        fields["act"] = hints["act"] if "act" in hints else _published_activation(fields, hints)
    return fields


_SHOWN = ("embed_dim", "mlp_ratio", "patch_size", "class_token", "global_pool", "pre_norm")


def _published_activation(fields: Fields, hints: Hints) -> str:
    """Returns the activation that all published models of these sizes have.

    No file shows it. Raises UserError where they differ (SigLIP, CLIP), and for a CLIP that is none
    of them.
    """
    rows = [
        model_kwargs(name)
        for name, (family, row) in VARIANTS.items()
        if family == "vit" and row.get("embed_dim", 768) == fields["embed_dim"]
    ]
    rows = [row for row in rows if all(row[key] == fields[key] for key in _SHOWN)]
    rows = [row for row in rows if row["img_size"] == fields["img_size"]] or rows
    acts = {row["act"] for row in rows}
    if fields["pre_norm"] and len(acts) != 1:
        return clip_activation(hints)
    acts = acts or {"gelu"}
    if len(acts) > 1:
        raise UserError(
            "the file does not show the activation, and published models of its sizes have "
            f"several; give a name or act=: {' or '.join(sorted(acts))}."
        )
    return acts.pop()


def clip_activation(hints: Hints) -> str:
    """Returns the activation of a CLIP tower, which no file shows; raises UserError without one."""
    if "act" not in hints:
        raise UserError(
            "the file does not show which activation this CLIP was trained with; give a name or "
            "act=: quick_gelu (OpenAI, MetaCLIP, DFN) or gelu (OpenCLIP)."
        )
    return hints["act"]


def describe_google(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns the result of `describe_vit` for Flax's kernel layout, with a hybrid's epsilons."""
    fields = describe_vit(named, tensors, hints, torch=False, computed_positions=True)
    if "resnet_layers" in fields:
        fields |= {"group_norm_eps": 1e-6, "weight_var_eps": 0.0, "weight_std_eps": 1e-5}
    return fields


def _width(named: Named, kernel: str) -> int:
    """Returns the outputs of a matrix that may be in several parts."""
    return sum(part.size for part in named[kernel]) // named["block_0/norm1/scale"][0].size


def _gated(named: Named) -> bool:
    """Returns whether a MLP's first layer makes two values for each that its second reads."""
    dim = named["block_0/norm1/scale"][0].size
    inputs = named["block_0/mlp/fc2/kernel"][0].size // dim
    return _width(named, "block_0/mlp/fc1/kernel") == 2 * inputs


def _heads(named: Named, tensors: Tensors, dim: int, hints: Hints) -> int:
    if (shown := _shown_heads(named, tensors, dim)) is not None:
        return shown
    if "num_heads" in hints and hints.get("embed_dim", dim) == dim:
        return hints["num_heads"]
    if _gated(named) and dim in GATED_HEADS:
        return GATED_HEADS[dim]
    if dim in HEADS:
        return HEADS[dim]
    candidates = ", ".join(str(n) for n in range(1, dim + 1) if dim % n == 0 and dim // n >= 8)
    raise UserError(
        f"the file does not show num_heads, and no published model is {dim} wide; give a name or "
        f"num_heads=: {candidates}."
    )


def _shown_heads(named: Named, tensors: Tensors, dim: int) -> int | None:
    """Returns the heads that tensors of some codes show."""
    kernel = named["block_0/attn/qkv/kernel"][0].shape
    if len(kernel) == 3:
        return kernel[1]
    if "block_0/attn/q_norm/scale" in named:
        return dim // named["block_0/attn/q_norm/scale"][0].size
    if "block_0/rope_freqs" in named:
        return named["block_0/rope_freqs"][0].shape[1]
    if PERIODS in tensors:  # a quarter of a head's channels
        return dim // (4 * tensors[PERIODS].size)
    return None


def _reads_the_class_token_alone(named: Named) -> bool:
    """Returns whether a DeiT's distillation token is there and what has only one reader reads."""
    readers = {"head/kernel", "pre_logits/kernel"}
    return "dist_token" in named and not readers.isdisjoint(named)


def _pool(named: Named, fields: Fields, hints: Hints) -> str:
    if "attn_pool/latent" in named:
        return "map" if "attn_pool/q/kernel" in named else "query"
    if not fields["class_token"]:
        return hints["global_pool"] if hints.get("global_pool") in ("max", "avgmax") else "avg"
    width = fields["pre_logits"] or fields["embed_dim"]
    if "head/kernel" in named:
        inputs = named["head/kernel"][0].size // fields["num_classes"]
        if inputs == 2 * width:
            return "token_avg"
    if hints.get("global_pool") in ("token", "avg", "max", "avgmax"):
        return hints["global_pool"]
    return "avg" if fields["fc_norm"] else "token"


def _positions(
    named: Named,
    fields: Fields,
    hints: Hints,
    no_embed_class: bool | None,
    computed: bool,
) -> Fields:
    """Returns the positions, and the image size that their grid shows.

    A grid of n x (n+2) and a class token's row are as many rows as a square of n+1 without one, so
    that a size that is known decides first.
    """
    if "pos_embed" not in named:
        return _no_positions(hints, computed and not fields["class_token"])
    n = named["pos_embed"][0].size // fields["embed_dim"]
    prefix = fields["class_token"] + fields["dist_token"] + fields["reg_tokens"]
    patch = fields["patch_size"]
    stride = total_stride(fields.get("resnet_layers"))
    height, width = (stride * p for p in pair(patch))
    areas = {n - prefix: False, n: True} if prefix else {n: False}
    if prefix and no_embed_class is not None:
        areas = {area: without for area, without in areas.items() if without == no_embed_class}
    squares = [(side * height, side * width) for area in areas if (side := square(area))]
    asked = hints.asked
    for size in (hints.get("img_size"), *squares, asked.get("img_size")):
        if size is None:
            continue
        h, w = pair(size)
        area = (h // height) * (w // width)
        if area in areas:
            found = h if h == w else (h, w)
            return {"img_size": found, "no_embed_class": areas[area], "pos_embed": "learned"}
    grids = [f"{h}x{n // h}" for n in areas for h in range(1, n + 1) if n % h == 0]
    raise UserError(
        f"the file has {n} position embeddings and does not show their grid; give a name or "
        f"img_size=, of one of the grids {', '.join(grids)}."
    )


def _no_positions(hints: Hints, computed: bool) -> Fields:
    """Returns the positions of a file without a table; `computed`: its code may compute them."""
    rotary = "none" if hints.get("rope_type", "none") != "none" else None
    kind = rotary or hints.get("pos_embed") or ("sincos2d" if computed else None)
    if kind not in ("none", *SINCOS):
        raise UserError(
            "the file has no position embeddings, and it does not show whether its positions are "
            "rotary (DINOv3, EVA-02, RoPE ViTs), computed, or none; give the name of its model, "
            "its config.json, or pos_embed='none' or 'sincos2d'."
        )
    return {"pos_embed": kind, "img_size": hints.get("img_size", 224)}

"""timm's `config.json` of a model of ours, by the tables that `timm_config.py` reads it with."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.hub import CONFIG
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.sources.rules import write_rules
from vitswin_jax.weights.sources.source import Fields, Source
from vitswin_jax.weights.sources.timm_config import (
    ACTIVATIONS,
    IMAGES,
    POOLS,
    RELATIVE,
    RENAMED,
    ROPES,
    SAME,
    halves_gates,
    is_eva,
    is_relpos,
)

NOT_TIMMS = re.compile(
    r"vit_tiny_patch(14|32)_\d+|vit_small_patch(8_384|14_\d+|16_gap_224)|vit_base_patch(8_384|14_\d+)"
    r"|vit_(large|huge|giant|gigantic)_patch14_378|vit_huge_patch(16|32)_\d+|swin_tiny_c24_.*"
)
"""Names of ours that timm does not have."""

_FIXED = ("resnet_layers", "dist_token", "patch_norm", "norm_layer")
"""Fields that an architecture has, and no argument of timm's changes."""

_OF_EVA = (
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "init_values", "class_token", "no_embed_class", "qk_norm",
)  # fmt: skip
"""Fields that are arguments of the same name and value of timm's Eva."""
_OF_RELPOS = (
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "qk_norm", "init_values", "class_token", "fc_norm", "global_pool",
)  # fmt: skip
"""The same of its VisionTransformerRelPos."""
_NOT_OF_BEIT = ("class_token", "no_embed_class", "reg_tokens", "pre_norm", "fc_norm")
_UNSAID = ("norm_eps", "group_norm_eps", "weight_var_eps", "weight_std_eps")
"""Fields that some architectures differ in, and no argument changes."""


def config_files(
    source: Source, metadata: Metadata, preprocess: Preprocess, *, origin: str
) -> dict[str, Any]:
    """Returns the contents of `config.json`, by its name.

    Raises UserError for a model that no architecture of timm can be made into.
    """
    fields = dict(metadata.fields)
    if fields.get("pre_norm", False) == fields.get("patch_bias", True) and "pre_norm" in fields:
        raise UserError(
            f"{origin}: timm cannot have a vit with pre_norm={fields['pre_norm']} and "
            f"patch_bias={fields['patch_bias']}: a norm before the blocks takes the bias away."
        )
    fields = {**fields, "mlp_ratio": whole_ratio(fields, origin=origin)}
    architecture = _nearest(source.family, fields, metadata.name, origin=origin)
    row = _arguments(model_kwargs(architecture))
    args = {
        key: value
        for key, value in _arguments(fields).items()
        if key not in row or not _equal(key, value, row[key])
    }
    if "global_pool" in args and "pos_embed" in fields:  # which decides where timm's norm is
        norm = "use_fc_norm" if _is_beit(fields) or is_eva(fields) else "fc_norm"
        args[norm] = fields["fc_norm"]
    height, width = pair(fields["img_size"])
    cfg = {
        "input_size": [fields["in_chans"], height, width],
        "fixed_input_size": True,
        **_images(preprocess),
        "num_classes": fields["num_classes"],
        "pool_size": None,
        "first_conv": _module(source, "patch_embed/proj/kernel", "backbone/root_conv/kernel")
        if fields.get("resnet_layers") is not None
        else _module(source, "patch_embed/proj/kernel"),
        "classifier": [_module(source, "head/kernel"), _module(source, "head_dist/kernel")]
        if fields.get("dist_token")
        else _module(source, "head/kernel"),
    }
    config = {
        "architecture": architecture,
        "num_classes": fields["num_classes"],
        "num_features": fields["embed_dim"] * 2 ** (len(fields.get("depths", (1,))) - 1),
        "global_pool": POOLS[fields.get("global_pool", "avg")],
        "model_args": args,
        "pretrained_cfg": {"tag": metadata.name.partition(".")[2], **cfg},
    }
    if metadata.class_names is not None:
        config["label_names"] = list(metadata.class_names)
    return {CONFIG: config}


def whole_ratio(fields: Fields, *, origin: str) -> float:
    """Returns `mlp_ratio` so that cutting off, as PyTorch's codes do, gives our rounded widths.

    Raises UserError where none does.
    """
    ratio = fields["mlp_ratio"]
    widths = [fields["embed_dim"] << stage for stage in range(len(fields.get("depths", (1,))))]
    whole = round(widths[0] * ratio) / widths[0]
    for each in (whole, whole * (1 + 1e-12), ratio, ratio * (1 + 1e-12)):
        if all(int(width * each) == round(width * ratio) for width in widths):
            return each
    raise UserError(f"{origin}: mlp_ratio={ratio} of embed_dim={widths[0]} is no whole width.")


def _is_beit(fields: Fields) -> bool:
    return fields.get("pos_embed") == "relative" and not is_relpos(fields)


def _class(fields: Fields) -> tuple[bool, bool, bool]:
    """Returns whether a model is one of timm's classes that only some arguments are of."""
    return _is_beit(fields), is_eva(fields), is_relpos(fields)


def _norm_at(fields: Fields) -> str | None:
    """Returns the places of norms, which only arguments of timm's Eva change."""
    return None if is_eva(fields) else fields.get("norm_at")


def _nearest(family: str, fields: Fields, name: str, *, origin: str) -> str:
    """Returns the architecture that needs the fewest arguments to become the model."""
    wanted = _arguments(fields)

    def distance(row: str) -> tuple[int, int, bool]:
        has = model_kwargs(row)
        own = sum(has.get(key) != fields.get(key) for key in _UNSAID)
        own += has.get("act") != fields.get("act") and "act_layer" not in wanted
        args = _arguments(has)
        return own, sum(not _equal(k, v, args.get(k)) for k, v in wanted.items()), row != base

    def fits(row: str) -> bool:
        has = model_kwargs(row)
        gated = (has.get("act") == "swiglu") == (fields.get("act") == "swiglu")
        fixed = all(has.get(key) == fields.get(key) for key in _FIXED)
        return (
            fixed and gated and _class(has) == _class(fields) and _norm_at(has) == _norm_at(fields)
        )

    base = name.partition(".")[0]
    rows = [row for row, (kind, _) in VARIANTS.items() if kind == family]
    rows = [row for row in rows if not NOT_TIMMS.fullmatch(row) and fits(row)]
    if not rows:
        shown = ", ".join(f"{key}={fields[key]!r}" for key in _FIXED if key in fields)
        raise UserError(f"{origin}: timm has no architecture with {shown}; write a single file.")
    return min(rows, key=distance)


def _arguments(fields: Fields) -> dict[str, Any]:
    """Returns timm's arguments that make a model with these fields."""
    args = {key: fields[key] for key in SAME if key in fields and key != "num_classes"}
    if "pos_embed" in fields:
        args["global_pool"] = POOLS.get(fields["global_pool"])
    if "proj_bias" in fields:
        args["proj_bias"] = fields["proj_bias"]
    if halves_gates(fields):
        half = {**fields, "mlp_ratio": fields["mlp_ratio"] / 2}
        args["mlp_ratio"] = whole_ratio(half, origin="timm")
    if is_eva(fields):
        return _eva_arguments(fields, args)
    if is_relpos(fields):
        return _relpos_arguments(fields, args)
    if _is_beit(fields):
        args = {key: value for key, value in args.items() if key not in _NOT_OF_BEIT}
        shared = fields["pos_embed_at"] == "shared"
        args |= {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
        return args | {"use_fc_norm": fields["fc_norm"]}
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    has_argument = "pos_embed" in fields or "pretrained_window_sizes" in fields
    if fields.get("act") in names and has_argument:
        args["act_layer"] = names[fields["act"]]
    if "window_size" in fields:
        window, stages = fields["window_size"], len(fields["depths"])
        if isinstance(window, tuple) and isinstance(window[0], int):
            window = (window,) * stages
        args |= {"window_size": window, "always_partition": fields["window_clip"] == "never"}
    return args


def _relpos_arguments(fields: Fields, args: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of timm's VisionTransformerRelPos."""
    kinds = {ours: theirs for theirs, ours in RELATIVE.items()}
    return {key: args[key] for key in _OF_RELPOS} | {
        "rel_pos_type": kinds[fields["pos_embed"]],
        "rel_pos_dim": fields["rel_pos_dim"],
        "shared_rel_pos": fields["pos_embed_at"] == "shared",
    }


def _eva_arguments(fields: Fields, args: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of timm's Eva, some of which are about what tensors are called."""
    names = {ours: theirs for theirs, ours in ROPES.items()}
    rope, gated = fields["rope_type"], fields["act"] == "swiglu"
    return {
        **{key: args[key] for key in (*_OF_EVA, "global_pool")},
        **{theirs: fields[ours] for theirs, ours in RENAMED.items()},
        "use_post_transformer_norm": fields["final_norm"] and not fields["fc_norm"],
        "use_post_norm": fields["norm_at"] == "after",
        "qkv_bias": bool(fields["qkv_bias"]),
        "attn_type": "rope" if fields["qkv_bias"] is True else "eva",
        "qkv_fused": not (gated and fields["scale_mlp_norm"]),
        "swiglu_mlp": gated,
        "swiglu_align_to": 8 if gated and rope == "centred" else 0,
        "use_abs_pos_emb": fields["pos_embed"] == "learned",
        "use_rot_pos_emb": rope != "none",
        "rope_type": names.get(rope, "cat"),
        "ref_feat_shape": fields["rope_ref_grid"],
    }


def _equal(key: str, value: Any, other: Any) -> bool:
    if key == "init_values":  # no trained model shows where LayerScale began
        return bool(value) == bool(other)
    if key in ("img_size", "patch_size"):
        return other is not None and pair(value) == pair(other)
    return bool(value == other)


def _images(preprocess: Preprocess) -> dict[str, Any]:
    images = {theirs: getattr(preprocess, ours) for ours, theirs in IMAGES.items()}
    if preprocess.crop_mode == "squash":
        images["crop_pct"] = 1.0
    if preprocess.crop_mode == "squash_crop":
        images["crop_mode"] = "squash"
    return images


def _module(source: Source, *names: str) -> str:
    """Returns the source's name of the module of the last of our parameters."""
    (name,) = write_rules({names[-1]: np.zeros((1, 1, 1, 1))}, source.rules, origin=names[-1])
    return name.removesuffix(".weight")

"""timm's `config.json`, as its `save_for_hf` writes it, under our names.

timm builds `architecture` with `model_args`; `num_classes`, `global_pool` and, where the size is
fixed, the size of `pretrained_cfg` come after them (`_update_default_model_kwargs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitswin_jax.core.types import UserError, with_tuples
from vitswin_jax.models.registry import model_kwargs, resolve_name
from vitswin_jax.models.tags import tags_of
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.mlp import GATES
from vitswin_jax.nn.sides import Size

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
POOLS = {pool: pool for pool in ("token", "avg", "max", "avgmax", "map")}
NORMS = {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}
ROPES = {"cat": "axial", "dinov3": "centred", "mixed": "mixed"}
RENAMED = {
    "num_reg_tokens": "reg_tokens", "use_pre_transformer_norm": "pre_norm",
    "use_fc_norm": "fc_norm", "scale_mlp": "scale_mlp_norm",
    "scale_attn_inner": "scale_attn_norm", "rope_grid_offset": "rope_grid_offset",
    "rope_grid_indexing": "rope_grid_indexing", "rope_temperature": "rope_temperature",
    "rope_rotate_half": "rope_rotate_half", "attn_pool_num_heads": "pool_heads",
    "attn_pool_mlp_ratio": "pool_mlp_ratio",
}  # fmt: skip
"""Arguments of timm's Eva -> our fields of the same values."""


RELATIVE = {"mlp": "relative_mlp", "mlp-swin": "relative_mlp_swin", "bias": "relative"}
"""timm's `rel_pos_type` -> our `pos_embed`, as its VisionTransformerRelPos takes it."""


def is_relpos(fields: Mapping[str, Any]) -> bool:
    """Returns whether a ViT is one of timm's class VisionTransformerRelPos, not a BEiT."""
    beit = fields.get("class_token") and fields.get("qkv_bias") is True
    return fields.get("pos_embed") in RELATIVE.values() and (
        fields["pos_embed"] != "relative" or not beit
    )


def _relative(kind: str) -> dict[str, Any]:
    """Returns the positions of a `rel_pos_type`: its beginning and a word in it decide."""
    mlp = "mlp-swin" if "swin" in kind else "mlp"
    return {"pos_embed": RELATIVE[mlp if kind.startswith("mlp") else "bias"]}


def is_eva(fields: Mapping[str, Any]) -> bool:
    """Returns whether a ViT is one of timm's class Eva."""
    return fields.get("rope_type", "none") != "none" or fields.get("qkv_bias") == "qv"


def halves_gates(fields: Mapping[str, Any]) -> bool:
    """Returns whether timm's `mlp_ratio` counts gate and value of an MLP once, where we do twice.

    Its other ViTs, DINOv2's giant, count both.
    """
    return fields.get("act") in GATES and (is_eva(fields) or fields.get("norm_layer") == "rmsnorm")


IMAGES = {
    "mean": "mean",
    "std": "std",
    "crop_fraction": "crop_pct",
    "crop_mode": "crop_mode",
    "interpolation": "interpolation",
}
"""Fields of `Preprocess` -> timm's."""

SAME = (
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "depths",
    "num_heads", "mlp_ratio", "qkv_bias", "init_values", "class_token", "no_embed_class",
    "reg_tokens", "pre_norm", "fc_norm", "pretrained_window_sizes", "qk_norm",
    "scale_attn_norm", "scale_mlp_norm", "final_norm", "pool_include_prefix",
    "extra_norm_period", "extra_norm_stage",
)  # fmt: skip
_UNSEEN = (
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "strict_img_size",
    "features_only", "pretrained", "checkpoint_path", "scriptable", "exportable", "no_jit",
    "head_init_scale", "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords",
    "qkv_fused", "swiglu_align_to", "attn_type", "use_post_transformer_norm", "window_ratio",
)  # fmt: skip
"""Arguments of training, of how a model is made, and of what tensors are called: they change no
result at its own size, or the tensors show them."""

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "dynamic_img_pad": (False,), "pos_embed": ("learn", ""), "head_dim": (None,),
    "use_abs_pos_emb": (True, False), "mlp_layer": ("mlp",), "embed_norm_layer": (),
    "attn_only_layer_scale": (False,), "num_kv_heads": (), "rope_mrope_section": (),
    "sequential_attn": (False,),
}  # fmt: skip
"""Arguments with the values that every model here has, besides None, which is the default."""

_NONES = ("ref_feat_shape", "attn_pool_num_heads")
"""Arguments whose None is a value, and which may be another in the architecture."""


_COUNT = {"type": ["integer", "null"], "minimum": 0, "maximum": 1_000_000}
_SIDES = {
    "type": ["integer", "array", "null"],
    "minimum": 0,
    "maximum": 1_000_000,
    "items": {**_COUNT, "type": "integer"},
    "maxItems": 64,
}
_WINDOWS = {**_SIDES, "items": {**_SIDES, "type": ["integer", "array"], "maxItems": 2}}
_FLAG = {"type": ["boolean", "null"]}
_NUMBERS = {"type": ["array", "null"], "items": {"type": "number"}}
_NAMES = {"type": ["array", "null"], "items": {"type": "string"}}
_TEXT = {"type": ["string", "null"]}
_NUMBER: Mapping[str, Any] = {"type": ["number", "null"]}
_WEIGHTS: Mapping[str, Any] = {
    "tag": _TEXT, "mean": _NUMBERS, "std": _NUMBERS, "crop_pct": {"type": ["number", "null"]},
    "crop_mode": _TEXT, "interpolation": _TEXT, "num_classes": _COUNT, "global_pool": _TEXT,
    "fixed_input_size": _FLAG, "label_names": _NAMES, "labels": _NAMES,
    "input_size": {"type": ["array", "null"], "items": _COUNT, "minItems": 3, "maxItems": 3},
}  # fmt: skip
SCHEMA: Mapping[str, Any] = {
    **_WEIGHTS,
    "architecture": {"type": "string"},
    "pretrained_cfg": {"type": "object", "properties": _WEIGHTS},
    "model_args": {
        "type": "object",
        "properties": {
            **dict.fromkeys(
                ("in_chans", "num_classes", "embed_dim", "depth", "reg_tokens"), _COUNT
            ),
            **dict.fromkeys(("img_size", "patch_size", "depths", "num_heads"), _SIDES),
            "window_ratio": {**_SIDES, "minimum": 1, "items": {**_SIDES, "type": "integer"}},
            **dict.fromkeys(("window_size", "pretrained_window_sizes"), _WINDOWS),
            **dict.fromkeys(("qkv_bias", "class_token", "no_embed_class", "pre_norm"), _FLAG),
            **dict.fromkeys(("fc_norm", "always_partition", "swiglu_mlp", "use_post_norm"), _FLAG),
            **dict.fromkeys(("use_rot_pos_emb", "rope_rotate_half", "final_norm"), _FLAG),
            **dict.fromkeys(("rel_pos_dim", "extra_norm_period"), _COUNT),
            **dict.fromkeys(("shared_rel_pos", "extra_norm_stage"), _FLAG),
            **dict.fromkeys(
                ("act_layer", "global_pool", "rel_pos_type", "rope_type", "norm_layer"), _TEXT
            ),
            "rope_temperature": _NUMBER,
            "rope_grid_offset": _NUMBER,
            "ref_feat_shape": _SIDES,
            "rope_grid_indexing": _TEXT,
            "mlp_ratio": {"type": ["number", "null"], "minimum": 0},
            "init_values": {"type": ["number", "null"]},
        },
    },
}
"""The keys that are read."""


def is_timm(config: Mapping[str, Any]) -> bool:
    """Returns whether a configuration is timm's."""
    return "architecture" in config


def stated(config: Mapping[str, Any], *, origin: str) -> dict[str, Any]:
    """Returns the arguments of `Stated` from a configuration that fits its schema.

    Raises UserError for an architecture and for arguments that no model here has.
    """
    cfg = config.get("pretrained_cfg", config)  # older files have everything on one level
    name = config["architecture"]
    try:
        variant = resolve_name(name)[0]
    except UserError as error:
        raise UserError(
            f"{origin}: its architecture is {name!r}, a model that vitswin_jax does not have."
        ) from error
    tag = cfg.get("tag") or ""
    args = dict(config.get("model_args", {}))
    for key in ("num_classes", "global_pool"):
        value = config.get(key, cfg.get(key))
        if value is not None:
            args.setdefault(key, value)
    size = cfg.get("input_size")
    if cfg.get("fixed_input_size") and size is not None:
        args.setdefault("img_size", size[-2:])
    labels = config.get("label_names") or cfg.get("label_names") or cfg.get("labels")
    names = tuple(labels) if isinstance(labels, list) else None
    images = {ours: with_tuples(cfg[key]) for ours, key in IMAGES.items() if cfg.get(key)}
    if images.get("crop_mode") == "squash" and images.get("crop_fraction", 1.0) < 1:
        images["crop_mode"] = "squash_crop"
    return {
        # A tag of one's own, or of another timm's: what it would say is stated here as well.
        "variant": f"{variant}.{tag}" if tag in tags_of(variant) else name,
        "fields": _fields(args, model_kwargs(variant), origin=origin),
        "class_names": names,
        "num_labels": None if names is None else len(names),
        "images": images or None,
    }


def _fields(args: Mapping[str, Any], row: Mapping[str, Any], *, origin: str) -> dict[str, Any]:
    """Returns our fields of the arguments that make another model of a row."""
    fields: dict[str, Any] = {}
    wrong = []
    for key, value in args.items():
        if key in _UNSEEN or value in _PLAIN.get(key, ()) or (value is None and key not in _NONES):
            continue
        change = _CHANGES.get(key)
        found = {} if change is None else change(value)
        if found is None or change is None:
            wrong.append(f"{key}={value!r}")
        else:
            fields |= found
    if "mlp_ratio" in fields and halves_gates({**row, **fields}):
        fields["mlp_ratio"] *= 2
    if args.get("use_post_transformer_norm") is False and args.get("use_fc_norm") is False:
        fields["final_norm"] = False  # else there is one, or the tensors show it
    if "extra_norm_period" in row and "window_size" not in fields:
        fields |= _window_of_grid({**row, **fields}, args.get("window_ratio") or 8)
    if wrong:
        raise UserError(
            f"{origin}: its model_args have {', '.join(wrong)}, which no model of vitswin_jax has."
        )
    return fields


def _window_of_grid(fields: Mapping[str, Any], ratio: int | Sequence[int]) -> dict[str, Any]:
    """Returns the windows of a Swin V2-CR: parts of the first map, by one ratio or each stage's."""
    sides = zip(pair(fields["img_size"]), pair(fields["patch_size"]), strict=True)
    grid = [side // patch for side, patch in sides]
    ratios = [ratio] * len(fields["depths"]) if isinstance(ratio, int) else ratio
    windows = tuple((max(1, grid[0] // r), max(1, grid[1] // r)) for r in ratios)
    return {"window_size": _shared(windows)}


def _one_of(field: str, known: Mapping[str, str]) -> Callable[[Any], dict[str, Any] | None]:
    return lambda value: {field: known[value]} if value in known else None


def _windows(value: Any) -> dict[str, Any]:
    """Returns a window, or one for each stage, whose sides timm may give as one number."""
    if isinstance(value, int) or (len(value) == 2 and isinstance(value[0], int)):
        return {"window_size": with_tuples(value)}
    return {"window_size": _shared(tuple(pair(with_tuples(window)) for window in value))}


def _shared(windows: tuple[Size, ...]) -> int | Size | tuple[Size, ...]:
    """Returns the window of each stage; one number, or one pair, where all stages have the same."""
    if len(set(windows)) > 1:
        return windows
    height, width = windows[0]
    return height if height == width else (height, width)


def _same(field: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {field: with_tuples(value)}


_CHANGES: Mapping[str, Callable[[Any], dict[str, Any] | None]] = {
    **{field: _same(field) for field in SAME},
    "window_size": _windows,
    "act_layer": _one_of("act", ACTIVATIONS),
    # Without pooling there is nothing to compare: features are then the source's own.
    "global_pool": lambda pool: {} if pool == "" else _one_of("global_pool", POOLS)(pool),
    "always_partition": lambda always: {"window_clip": "never"} if always else {},
    **{theirs: _same(ours) for theirs, ours in RENAMED.items()},
    "proj_bias": lambda biased: {"proj_bias": biased, "mlp_bias": biased},
    "norm_layer": _one_of("norm_layer", NORMS),
    "rope_type": _one_of("rope_type", ROPES),
    "use_rot_pos_emb": lambda rotary: {} if rotary else {"rope_type": "none"},
    "use_post_norm": lambda after: {"norm_at": "after" if after else "before"},
    "swiglu_mlp": lambda gated: {"act": "swiglu"} if gated else {},
    "ref_feat_shape": lambda grid: {"rope_ref_grid": grid and pair(with_tuples(grid))},
    "rel_pos_type": _relative,
    "rel_pos_dim": _same("rel_pos_dim"),
    "shared_rel_pos": lambda shared: {"pos_embed_at": "shared" if shared else "every"},
    "use_rel_pos_bias": lambda own: {"pos_embed_at": "every"} if own else {},
    "use_shared_rel_pos_bias": lambda shared: {"pos_embed_at": "shared"} if shared else {},
}
"""timm's argument -> our fields; None: no model here has such a value."""

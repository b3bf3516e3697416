"""timm's `config.json`, as its `save_for_hf` writes it, under our names.

timm builds `architecture` with `model_args`; `num_classes`, `global_pool` and, where the size is
fixed, the size of `pretrained_cfg` come after them (`_update_default_model_kwargs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitswin_jax.core.types import UserError, with_tuples
from vitswin_jax.models.registry import resolve_name
from vitswin_jax.models.tags import tags_of
from vitswin_jax.nn.layers import pair

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
}
POOLS = {"token": "token", "avg": "avg", "map": "map"}

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
    "reg_tokens", "pre_norm", "fc_norm", "pretrained_window_sizes",
)  # fmt: skip
_UNSEEN = (
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "strict_img_size",
    "features_only", "pretrained", "checkpoint_path", "scriptable", "exportable", "no_jit",
)  # fmt: skip
"""Arguments of training, and of how a model is made: they change no result at its own size."""

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "qk_norm": (False,), "proj_bias": (True,), "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,), "final_norm": (True,), "pool_include_prefix": (False,),
    "dynamic_img_pad": (False,), "pos_embed": ("learn", ""), "head_dim": (None,),
    "use_abs_pos_emb": (False,), "swiglu_mlp": (False,), "scale_mlp": (False,),
    "norm_layer": ("layernorm",), "embed_norm_layer": (), "attn_type": (), "mlp_layer": ("mlp",),
}  # fmt: skip
"""Arguments with the values that every model here has, besides None, which is the default."""


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
            **dict.fromkeys(("window_size", "pretrained_window_sizes"), _WINDOWS),
            **dict.fromkeys(("qkv_bias", "class_token", "no_embed_class", "pre_norm"), _FLAG),
            **dict.fromkeys(("fc_norm", "always_partition"), _FLAG),
            **dict.fromkeys(("act_layer", "global_pool"), _TEXT),
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
        "fields": _fields(args, origin=origin),
        "class_names": names,
        "num_labels": None if names is None else len(names),
        "images": images or None,
    }


def _fields(args: Mapping[str, Any], *, origin: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    wrong = []
    for key, value in args.items():
        if value is None or key in _UNSEEN or value in _PLAIN.get(key, ()):
            continue
        change = _CHANGES.get(key)
        found = {} if change is None else change(value)
        if found is None or change is None:
            wrong.append(f"{key}={value!r}")
        else:
            fields |= found
    if wrong:
        raise UserError(
            f"{origin}: its model_args have {', '.join(wrong)}, which no model of vitswin_jax has."
        )
    return fields


def _one_of(field: str, known: Mapping[str, str]) -> Callable[[Any], dict[str, Any] | None]:
    return lambda value: {field: known[value]} if value in known else None


def _windows(value: Any) -> dict[str, Any]:
    """Returns a window, or one for each stage, whose sides timm may give as one number."""
    if isinstance(value, int) or len(value) == 2:
        return {"window_size": with_tuples(value)}
    return {"window_size": tuple(pair(with_tuples(window)) for window in value)}


def _same(field: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {field: with_tuples(value)}


_CHANGES: Mapping[str, Callable[[Any], dict[str, Any] | None]] = {
    **{field: _same(field) for field in SAME},
    "window_size": _windows,
    "act_layer": _one_of("act", ACTIVATIONS),
    # Without pooling there is nothing to compare: features are then the source's own.
    "global_pool": lambda pool: {} if pool == "" else _one_of("global_pool", POOLS)(pool),
    "always_partition": lambda always: {"window_clip": "never"} if always else {},
    "use_fc_norm": _same("fc_norm"),
    "use_rel_pos_bias": lambda own: {"pos_embed_at": "every"} if own else {},
    "use_shared_rel_pos_bias": lambda shared: {"pos_embed_at": "shared"} if shared else {},
}
"""timm's argument -> our fields; None: no model here has such a value."""

"""transformers' `config.json` under our names.

A key that a file leaves out has the default of its class there; the tables have those that no
tensor shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitswin_jax.core.types import UserError, with_tuples
from vitswin_jax.weights.sources.source import Source

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
GATED = {"silu": "swiglu", "gelu": "geglu"}
"""What acts on the gate of a gated MLP -> ours."""

_VIT = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "qkv_bias": "qkv_bias",
    "image_size": "img_size",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "num_register_tokens": "reg_tokens",
    "layer_norm_eps": "norm_eps",
}
_DINOV3 = {"rope_theta": "rope_temperature", "proj_bias": "proj_bias", "mlp_bias": "mlp_bias"}
_AIMV2 = {key: ours for key, ours in _VIT.items() if key != "layer_norm_eps"} | {
    "rms_norm_eps": "norm_eps", "mlp_bias": "mlp_bias",
}  # fmt: skip
_SWIN = {
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "image_size": "img_size",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "window_size": "window_size",
    "pretrained_window_sizes": "pretrained_window_sizes",
    "use_absolute_embeddings": "ape",
    "layer_norm_eps": "norm_eps",
}


@dataclass(frozen=True)
class Kind:
    """A `model_type`: how its sources are called here, its keys, and its class's defaults."""

    sources: tuple[str, ...]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    own: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {}
    """From a configuration: fields that one key does not say."""


def _vit(*sources: str, eps: float, act: str = "gelu") -> Kind:
    names = tuple(f"Hugging Face ({name})" for name in sources)
    return Kind(names, _VIT, {"num_heads": 12, "act": act, "norm_eps": eps})


def _swin(name: str) -> Kind:
    defaults = {"act": "gelu", "norm_eps": 1e-5, "window_size": 7, "img_size": 224}
    return Kind((f"Hugging Face ({name})",), _SWIN, defaults)


def _dinov3_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the biases and the activation, by the defaults of DINOv3ViTConfig."""
    flags = (("q", "query_bias", True), ("k", "key_bias", False), ("v", "value_bias", True))
    biased = "".join(part for part, key, own in flags if config.get(key, own))
    fields: dict[str, Any] = {"qkv_bias": {"": False, "qkv": True}.get(biased, biased)}
    if config.get("use_gated_mlp", False):
        fields["act"] = GATED.get(config.get("hidden_act", "gelu"))
        if config.get("intermediate_size") and config.get("hidden_size"):
            fields["mlp_ratio"] = 2 * config["intermediate_size"] / config["hidden_size"]
    return fields


def _aimv2_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the facts of an Aimv2VisionConfig that a ViT's lacks: gates, biases, positions."""
    fields: dict[str, Any] = {"act": GATED.get(config.get("hidden_act", "silu"))}
    if config.get("intermediate_size") and config.get("hidden_size"):
        fields["mlp_ratio"] = 2 * config["intermediate_size"] / config["hidden_size"]
    if config.get("qkv_bias") is not None:
        fields["proj_bias"] = config["qkv_bias"]
    if config.get("is_native"):
        fields["pos_embed"] = "sincos2d_mae"
    return fields


def _beit(*sources: str) -> Kind:
    def fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"global_pool": "avg" if config.get("use_mean_pooling", True) else "token"}

    return dataclasses.replace(_vit(*sources, eps=1e-12), own=fields)


KINDS = {
    "vit": _vit("ViT", eps=1e-12),
    "vit_mae": _vit("ViT", eps=1e-12),
    "vit_msn": _vit("ViT", eps=1e-6),
    "ijepa": _vit("ViT", eps=1e-12),
    "deit": _vit("DeiT", "ViT", eps=1e-12),
    "dinov2": _vit("DINOv2", eps=1e-6),
    "dinov2_with_registers": _vit("DINOv2 with registers", eps=1e-6),
    "beit": _beit("BEiT"),
    "data2vec-vision": _beit("Data2Vec", "BEiT"),
    "dinov3_vit": Kind(
        ("Hugging Face (DINOv3)",),
        {key: ours for key, ours in _VIT.items() if key != "qkv_bias"} | _DINOV3,
        {"num_heads": 6, "act": "gelu", "norm_eps": 1e-5, "img_size": 224},
        _dinov3_fields,
    ),
    "aimv2_vision_model": Kind(
        ("Hugging Face (AIMv2)", "AIMv2"),
        _AIMV2,
        {"num_heads": 8, "act": "swiglu", "norm_eps": 1e-5, "img_size": 224},
        _aimv2_fields,
    ),
    "siglip_vision_model": _vit("SigLIP", eps=1e-6, act="gelu_tanh"),
    "siglip2_vision_model": _vit("SigLIP 2 NaFlex", "SigLIP", eps=1e-6, act="gelu_tanh"),
    "clip_vision_model": _vit("CLIP", eps=1e-5, act="quick_gelu"),
    "swin": _swin("Swin"),
    "swinv2": _swin("Swin V2"),
}
TOWERS = {
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
    "aimv2": "aimv2_vision_model",
}
"""Types with two towers -> the type of the image tower, whose keys are under `vision_config`."""


_COUNT = {"type": ["integer", "null"], "minimum": 0, "maximum": 1_000_000}
_SIDES = {
    "type": ["integer", "array", "null"],
    "minimum": 0,
    "maximum": 1_000_000,
    "items": _COUNT,
    "maxItems": 64,
}
_NUMBER = {"type": ["number", "null"], "minimum": 0}
_FLAG = {"type": ["boolean", "null"]}
_KEYS: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "embed_dim", "num_channels"), _COUNT),
    **dict.fromkeys(("num_register_tokens", "intermediate_size"), _COUNT),
    **dict.fromkeys(("num_attention_heads", "image_size", "patch_size", "window_size"), _SIDES),
    **dict.fromkeys(("depths", "num_heads", "pretrained_window_sizes"), _SIDES),
    **dict.fromkeys(("mlp_ratio", "layer_norm_eps", "rms_norm_eps", "rope_theta"), _NUMBER),
    **dict.fromkeys(("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias"), _FLAG),
    **dict.fromkeys(("use_gated_mlp", "is_native", "use_head"), _FLAG),
    "use_mean_pooling": _FLAG,
    **dict.fromkeys(("qkv_bias", "use_absolute_embeddings", "use_swiglu_ffn"), _FLAG),
    "hidden_act": {"type": "string"},
}
CONFIG_SCHEMA: Mapping[str, Any] = {
    "model_type": {"type": "string"},
    "architectures": {"type": ["array", "null"], "items": {"type": "string"}},
    "vision_config": {"type": ["object", "null"], "properties": _KEYS},
    "id2label": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    **_KEYS,
}
"""The keys of a `config.json` that are read."""


def stated(config: Mapping[str, Any], *, origin: str) -> dict[str, Any]:
    """Returns the arguments of `Stated` from a configuration that fits its schema.

    One without `model_type` is another program's, and states nothing but names of classes. Raises
    UserError for a `model_type` and for values that no model here has.
    """
    names, count = _class_names(config)
    found: dict[str, Any] = {"class_names": names}
    if "model_type" not in config:
        return found
    kind = config["model_type"]
    if any(name.endswith("ForImageClassification") for name in config.get("architectures") or ()):
        found["num_labels"] = count
    if kind in TOWERS:
        own = kind == "aimv2" and "vision_config" not in config  # Apple's files, of one tower
        kind, config = TOWERS[kind], config if own else config.get("vision_config") or {}
    if kind not in KINDS:
        raise UserError(
            f"{origin}: its model_type is {kind!r}, a model that vitswin_jax does not have."
        )
    fields = {
        ours: with_tuples(config[theirs])
        for theirs, ours in KINDS[kind].keys.items()
        if config.get(theirs) is not None
    }
    gives_width = not kind.startswith("dinov2")  # whose class does not read it
    if gives_width and config.get("intermediate_size") and fields.get("embed_dim"):
        fields["mlp_ratio"] = config["intermediate_size"] / fields["embed_dim"]
    act = config.get("hidden_act", "gelu")
    if act in ACTIVATIONS and "hidden_act" in config and not config.get("use_swiglu_ffn"):
        fields["act"] = ACTIVATIONS[act]
    elif act not in ACTIVATIONS:
        raise UserError(
            f"{origin}: its hidden_act is {act!r}; a model here can have "
            f"{', '.join(dict.fromkeys(ACTIVATIONS))}."
        )
    fields |= KINDS[kind].own(config)
    if "pretrained_window_sizes" in fields and "depths" in fields:  # it reads a stage's own
        stages = len(fields["depths"])
        fields["pretrained_window_sizes"] = fields["pretrained_window_sizes"][:stages]
    if fields.get("act", act) is None:
        raise UserError(
            f"{origin}: its hidden_act is {act!r}; the gate of a model here can be "
            f"{' or '.join(GATED)}."
        )
    return found | {"kind": kind, "fields": fields, "defaults": KINDS[kind].defaults}


def check_source(kind: str, source: Source, *, origin: str) -> None:
    """Raises UserError where the tensors of a file are of another layout than its `model_type`."""
    if source.name not in KINDS[kind].sources:
        raise UserError(
            f"{origin}: its model_type is {kind!r}, and the tensors are those of {source.name}."
        )


def _class_names(config: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, int | None]:
    """Returns the names of the classes, None if transformers made them up, and their number."""
    labels = config.get("id2label")
    if not labels or labels.keys() != set(map(str, range(len(labels)))):
        return None, None
    names = tuple(labels[str(i)] for i in range(len(labels)))
    made_up = names == tuple(f"LABEL_{i}" for i in range(len(labels)))
    return None if made_up else names, len(labels)

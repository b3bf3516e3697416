"""transformers' `config.json` and `preprocessor_config.json` under our names.

A key that a file leaves out has the default of its class there; the tables have those that no
tensor shows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vitswin_jax.core.types import UserError, with_tuples
from vitswin_jax.weights.sources.source import CLIP, HALF, Source

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

_PIXELS = {"type": "integer", "minimum": 1, "maximum": 100_000}
_SIZE = {
    "type": ["integer", "array", "object", "null"],
    "minimum": 1,
    "maximum": 100_000,
    "items": _PIXELS,
    "minItems": 1,
    "maxItems": 2,
    "minProperties": 1,
    "additionalProperties": _PIXELS,
}
_CHANNELS = {"type": ["array", "null"], "items": {"type": "number"}}
PROCESSOR_SCHEMA: Mapping[str, Any] = {
    **dict.fromkeys(("image_mean", "image_std"), _CHANNELS),
    **dict.fromkeys(("size", "crop_size"), _SIZE),
    "image_processor_type": {"type": "string"},
    "feature_extractor_type": {"type": "string"},
    **{f"do_{step}": _FLAG for step in ("resize", "rescale", "normalize", "center_crop")},
    "rescale_factor": {"type": ["number", "null"], "exclusiveMinimum": 0},
    "resample": {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
}
"""The keys of a `preprocessor_config.json` that are read."""


@dataclass(frozen=True)
class Processor:
    """The defaults of a class of image processors."""

    resample: int
    size: Any
    crop_size: Any = None
    statistics: Mapping[str, Any] = field(default_factory=lambda: HALF)


_SQUARE, _EDGE = {"height": 224, "width": 224}, {"shortest_edge": 224}
PROCESSORS = {
    "ViT": Processor(2, _SQUARE),
    "DeiT": Processor(3, {"height": 256, "width": 256}, _SQUARE),
    "CLIP": Processor(3, _EDGE, _SQUARE, CLIP),
    "Bit": Processor(3, _EDGE, _SQUARE, CLIP),
    "Siglip": Processor(3, _SQUARE),
}
"""The beginning of a processor's name, before `ImageProcessor` or `FeatureExtractor`."""


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


def images(processor: Mapping[str, Any], *, origin: str) -> dict[str, Any]:
    """Returns the fields of `Preprocess`, except for the size, of an image processor.

    "shortest_edge" resizes an image until it covers the size, other sizes give it their shape.
    It rescales pixels, by 1/255 if it does not say otherwise, and normalises them; ours are of
    pixels in [0, 1], so that another factor, and none, change mean and std. Raises UserError where
    a processor that is not in `PROCESSORS` leaves out what only its class knows.
    """
    name = processor.get("image_processor_type") or processor.get("feature_extractor_type") or "ViT"
    name = name.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    own = PROCESSORS.get(name)

    def value(key: str, default: Any) -> Any:
        found = processor.get(key)
        if found is None and own is None:
            raise UserError(
                f"{origin}: has no {key}, and the defaults of {name!r} are not known; those of "
                f"{', '.join(PROCESSORS)} are."
            )
        return default if found is None else found

    known = own or PROCESSORS["ViT"]
    mean, std = (0.0,) * 3, (1.0,) * 3
    if processor.get("do_normalize", True):
        mean = value("image_mean", known.statistics["mean"])
        std = value("image_std", known.statistics["std"])
    factor = _levels(processor)
    size = value("size", known.size)
    crop = None
    if processor.get("do_center_crop", known.crop_size is not None):
        crop = value("crop_size", known.crop_size)
    fraction = 1.0 if crop is None else min(1.0, _shortest(crop) / _shortest(size))
    shape = known.size if isinstance(size, int) else size  # which a bare number leaves to the class
    squash = "squash" if fraction == 1.0 else "squash_crop"
    return {
        "mean": tuple(each / factor for each in mean),
        "std": tuple(each / factor for each in std),
        "interpolation": Image.Resampling(value("resample", known.resample)).name.lower(),
        "crop_mode": "center" if "shortest_edge" in shape else squash,
        "crop_fraction": fraction,
    }


def _levels(processor: Mapping[str, Any]) -> float:
    """Returns the value that a processor gives to white, 255, before it normalises."""
    if not processor.get("do_rescale", True):
        return 255.0
    factor = processor.get("rescale_factor")
    white = 1.0 if factor is None else 255 * factor
    return 1.0 if math.isclose(white, 1.0, rel_tol=1e-6) else white  # 1/255 as a decimal


def _shortest(size: Any) -> int:
    """Returns pixels of a size: 224, [224, 224], or by `shortest_edge`, `height` and `width`."""
    if isinstance(size, int):
        return size
    return min(size.values() if isinstance(size, dict) else size)

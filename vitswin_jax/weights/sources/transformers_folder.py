"""transformers' `config.json` and `preprocessor_config.json` of a model of ours.

The tables are those that `transformers_config.py` reads them with.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.hub import CONFIG, PROCESSOR
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.sources.source import Fields, Source
from vitswin_jax.weights.sources.timm_folder import whole_ratio
from vitswin_jax.weights.sources.transformers_config import ACTIVATIONS, GATED, KINDS

_CLASSES = {  # model_type: the class without a head, and with one
    "vit": ("ViTModel", "ViTForImageClassification"),
    "deit": ("DeiTModel", "DeiTForImageClassificationWithTeacher"),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification",
    ),
    "beit": ("BeitModel", "BeitForImageClassification"),
    "dinov3_vit": ("DINOv3ViTModel", "DINOv3ViTModel"),
    "aimv2_vision_model": ("Aimv2VisionModel", "Aimv2VisionModel"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipForImageClassification"),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "swin": ("SwinModel", "SwinForImageClassification"),
    "swinv2": ("Swinv2Model", "Swinv2ForImageClassification"),
}  # fmt: skip
_DROPS = {"hidden_dropout_prob": "drop_rate", "attention_probs_dropout_prob": "attn_drop_rate"}
_PATHS = {"drop_path_rate": "drop_path_rate"}
_CORE = {"attention_dropout": "attn_drop_rate"}
_RATES = {
    **dict.fromkeys(("vit", "deit"), _DROPS),
    **dict.fromkeys(("beit", "dinov2", "dinov2_with_registers", "swin", "swinv2"), _DROPS | _PATHS),
    "dinov3_vit": _CORE | _PATHS,
    **dict.fromkeys(("aimv2_vision_model", "siglip_vision_model", "clip_vision_model"), _CORE),
}
"""model_type -> its rates of training, under our names. transformers has defaults for them, and
KerasHub reads no file without them."""


def config_files(
    source: Source, metadata: Metadata, preprocess: Preprocess, *, origin: str
) -> dict[str, Any]:
    """Returns the contents of each file beside the weights, by its name.

    Raises UserError for a model that no configuration of transformers describes.
    """
    kind = next(kind for kind, each in KINDS.items() if source.name in each.sources)
    fields = dict(metadata.fields)
    classes = fields["num_classes"]
    _check(kind, fields, origin=origin)
    config = {theirs: fields[ours] for theirs, ours in KINDS[kind].keys.items() if ours in fields}
    if kind not in ("dinov2_with_registers", "dinov3_vit"):
        config.pop("num_register_tokens", None)
    act = fields["act"]
    config["hidden_act"] = next((k for k, ours in ACTIVATIONS.items() if ours == act), "gelu")
    config |= {theirs: fields.get(ours, 0.0) for theirs, ours in _RATES[kind].items()}
    if kind == "beit":
        config.pop("qkv_bias")
    if kind in _OWN:
        config |= _OWN[kind](fields)
    if "dinov2" in kind:
        config |= {
            "use_swiglu_ffn": act == "swiglu",
            "mlp_ratio": _ratio(fields, origin=origin),
            "layerscale_value": fields["init_values"] or 1.0,
        }
    elif "mlp_ratio" in config:
        config["mlp_ratio"] = whole_ratio(fields, origin=origin)
    else:
        width = round(fields["embed_dim"] * fields["mlp_ratio"])
        config.setdefault("intermediate_size", width)
    if kind == "vit" and fields["pre_logits"] is not None:
        config |= {"pooler_output_size": fields["pre_logits"], "pooler_act": "tanh"}
    architecture = _CLASSES[kind][bool(classes)]
    if kind == "siglip_vision_model":
        config["vision_use_head"] = fields["global_pool"] == "map"
        if classes:
            kind, config = "siglip", {"vision_config": {"model_type": kind, **config}}
    if kind == "deit" and not fields["dist_head"]:
        architecture = architecture.removesuffix("WithTeacher")
    config |= {"model_type": kind, "architectures": [architecture]}
    if kind == "clip_vision_model":
        config |= {"projection_dim": classes} if classes else {}
    elif classes:
        names = metadata.class_names or [f"LABEL_{i}" for i in range(classes)]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    return {CONFIG: config, PROCESSOR: _processor(preprocess)}


def _beit(fields: Fields) -> dict[str, Any]:
    """Returns the keys that only BEiT's configuration has."""
    return {
        "use_mean_pooling": fields["global_pool"] == "avg",
        "use_relative_position_bias": fields["pos_embed_at"] == "every",
        "use_shared_relative_position_bias": fields["pos_embed_at"] == "shared",
        "layer_scale_init_value": fields["init_values"],
    }


def _dinov3(fields: Fields) -> dict[str, Any]:
    """Returns the keys that only DINOv3's configuration has."""
    biased, gates = fields["qkv_bias"], {ours: act for act, ours in GATED.items()}
    gated = fields["act"] in gates
    flags = {"query_bias": "q", "key_bias": "k", "value_bias": "v"}
    width = round(fields["embed_dim"] * fields["mlp_ratio"])
    config = {
        **{flag: biased is True or part in (biased or "") for flag, part in flags.items()},
        "use_gated_mlp": gated,
        "layerscale_value": fields["init_values"] or 1.0,
        "intermediate_size": width // 2 if gated else width,
    }
    return config | ({"hidden_act": gates[fields["act"]]} if gated else {})


def _aimv2(fields: Fields) -> dict[str, Any]:
    """Returns the keys that only AIMv2's configuration has."""
    gates = {ours: act for act, ours in GATED.items()}
    return {
        "use_head": fields["global_pool"] == "query",
        "is_native": fields["pos_embed"] != "learned",
        "hidden_act": gates[fields["act"]],
        "intermediate_size": round(fields["embed_dim"] * fields["mlp_ratio"]) // 2,
    }


_OWN = {"beit": _beit, "dinov3_vit": _dinov3, "aimv2_vision_model": _aimv2}
"""model_type -> the keys that only its configuration has."""


def _check(kind: str, fields: Fields, *, origin: str) -> None:
    window = fields.get("window_size", 0)
    if not isinstance(window, int):
        raise UserError(f"{origin}: transformers has one square window, not window_size={window}.")
    stages = len(fields.get("depths", (1,))) - 1
    last = min(pair(fields["img_size"])) // min(pair(fields["patch_size"])) >> stages
    if kind == "swin" and last < window:
        raise UserError(
            f"{origin}: transformers' Swin has windows of {window} in every stage, and the last "
            f"stage of this one has {last} patches a side; write timm, or a smaller window_size."
        )
    if "dinov2" in kind and fields["num_classes"] and fields["global_pool"] == "token":
        raise UserError(
            f"{origin}: transformers' DINOv2 classifies the class token beside the mean, and this "
            "head reads global_pool='token'; write timm, or a model with num_classes=0."
        )


def _ratio(fields: Fields, *, origin: str) -> int:
    """Returns DINOv2's `mlp_ratio`; a gated MLP takes two thirds, rounded up to eights."""
    width, wanted = fields["embed_dim"], round(fields["embed_dim"] * fields["mlp_ratio"])
    for ratio in range(1, 17):
        inner = (int(width * ratio * 2 / 3) + 7) // 8 * 8
        if wanted == (2 * inner if fields["act"] == "swiglu" else width * ratio):
            return ratio
    raise UserError(
        f"{origin}: transformers' DINOv2 has a whole mlp_ratio, and none gives a width of {wanted}."
    )


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    """Returns an image processor: the class whose way of cropping is the preprocessing's."""
    height, width = preprocess.img_size
    sides = {"height": height, "width": width}
    covered = [math.floor(side / preprocess.crop_fraction) for side in (height, width)]
    kinds = {
        "squash": ("ViT", {"size": sides}),
        "squash_crop": (
            "DeiT", {"size": dict(zip(sides, covered, strict=True)), "crop_size": sides},
        ),
        "center": ("CLIP", {"size": {"shortest_edge": min(covered)}, "crop_size": sides}),
    }  # fmt: skip
    name, sizes = kinds[preprocess.crop_mode]
    return {
        "image_processor_type": f"{name}ImageProcessor",
        "do_resize": True,
        "do_center_crop": "crop_size" in sizes,
        **sizes,
        "resample": Image.Resampling[preprocess.interpolation.upper()].value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": preprocess.channels == 3,
    }

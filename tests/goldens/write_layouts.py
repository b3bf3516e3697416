"""Writes goldens/weights/layouts.json.gz: the names and shapes that the originals' files have.

python tests/goldens/write_layouts.py PARITY, with timm 1.0.31 and transformers 5.24. PARITY has the
manifests of files of Google, Microsoft and Hugging Face (`manifests/google/*.json`); of those, two
blocks of each kind are kept. A case has the format, and the family and the fields of our model that
shall be written in it; `entries` are names and shapes in the original's own state dict or file.
"""

import gzip
import json
import re
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import timm
import transformers

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
       "num_classes": 5}  # fmt: skip
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 3),
        "window_size": 8, "num_classes": 5}  # fmt: skip
BEIT = VIT | {"pos_embed": "relative", "pos_embed_at": "every", "init_values": 0.1,
              "global_pool": "avg", "fc_norm": True}  # fmt: skip
REGISTERS = {"reg_tokens": 3, "no_embed_class": True, "init_values": 1e-5}
PATCHES = {"class_token": False, "global_pool": "avg"}
TIMM = {  # case: (timm's name, its arguments, family here, its fields)
    "vit": ("vit_tiny_patch16_224", VIT, "vit", VIT),
    "vit_gap": ("vit_tiny_patch16_224", VIT | PATCHES | {"fc_norm": True},
                "vit", VIT | PATCHES | {"fc_norm": True}),
    "vit_rectangle": ("vit_tiny_patch16_224", VIT | {"img_size": (32, 16), "qkv_bias": False},
                      "vit", VIT | {"img_size": (32, 16), "qkv_bias": False}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT, "vit", VIT | {"dist_token": True}),
    "deit3": ("deit3_small_patch16_224", VIT, "vit",
              VIT | {"no_embed_class": True, "init_values": 1e-6}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", VIT | {"reg_tokens": 3, "num_classes": 0},
                         "vit", VIT | REGISTERS | {"num_classes": 0}),
    "dinov2_giant": ("vit_giant_patch14_dinov2", VIT | {"mlp_ratio": 4.0}, "vit",
                     VIT | {"init_values": 1e-5, "act": "swiglu"}),
    "siglip": ("vit_base_patch16_siglip_224", VIT | {"num_classes": 0}, "vit",
               VIT | {"num_classes": 0, "class_token": False, "global_pool": "map"}),
    "clip": ("vit_base_patch16_clip_224", VIT, "vit",
             VIT | {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}),
    "hybrid_stem": ("vit_tiny_r_s16_p8_224", VIT | {"img_size": 64, "patch_size": 4}, "vit",
                    VIT | {"img_size": 64, "patch_size": 4, "resnet_layers": ()}),
    "hybrid": ("vit_small_r26_s32_224", VIT | {"img_size": 64, "patch_size": 1}, "vit",
               VIT | {"img_size": 64, "patch_size": 1, "resnet_layers": (2, 2, 2, 2)}),
    "beit": ("beit_base_patch16_224", VIT, "vit", BEIT),
    "beit_shared": (
        "beit_base_patch16_224",
        VIT | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"},
        "vit", BEIT | {"pos_embed_at": "shared", "global_pool": "token", "fc_norm": False}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, "swin", SWIN),
    "swin_tiny": ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, "swin",
                  {"embed_dim": 24, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}),
    "swin_headless": ("swin_tiny_patch4_window7_224", SWIN | {"num_classes": 0, "qkv_bias": False},
                      "swin", SWIN | {"num_classes": 0, "qkv_bias": False}),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, "swinv2",
               SWIN | {"pretrained_window_sizes": (0, 0)}),
}  # fmt: skip
HUGGINGFACE_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
                   "num_attention_heads": 2, "intermediate_size": 96, "num_labels": 5}  # fmt: skip
HUGGINGFACE_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [2, 2],
                    "num_heads": [1, 3], "window_size": 8, "num_labels": 5}  # fmt: skip
DINOV2 = VIT | {"init_values": 1e-5, "global_pool": "token_avg"}
NO_HEAD = {"num_classes": 0}
HUGGINGFACE = {  # case: (the class, its configuration, what it has besides, family, fields)
    "vit": ("ViTForImageClassification", "ViT", {}, "vit", VIT),
    "vit_pooler": ("ViTModel", "ViT", {}, "vit", VIT | NO_HEAD | {"pre_logits": 24}),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiT", {}, "vit",
             VIT | {"dist_token": True}),
    "deit_class_token": ("DeiTForImageClassification", "DeiT", {}, "vit",
                         VIT | {"dist_token": True, "dist_head": False}),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2", {}, "vit", DINOV2),
    "dinov2_headless": ("Dinov2Model", "Dinov2", {}, "vit",
                        DINOV2 | NO_HEAD | {"global_pool": "token"}),
    "dinov2_gated": ("Dinov2ForImageClassification", "Dinov2", {"use_swiglu_ffn": True}, "vit",
                     DINOV2 | {"act": "swiglu", "mlp_ratio": 128 / 24}),
    "dinov2_registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegisters",
                         {"num_register_tokens": 3}, "vit", DINOV2 | REGISTERS),
    "dinov2_registers_gated": (
        "Dinov2WithRegistersForImageClassification", "Dinov2WithRegisters",
        {"num_register_tokens": 3, "use_swiglu_ffn": True},
        "vit", DINOV2 | REGISTERS | {"act": "swiglu", "mlp_ratio": 128 / 24}),
    "clip": ("CLIPVisionModel", "CLIPVision", {}, "vit",
             VIT | NO_HEAD | {"pre_norm": True, "patch_bias": False}),
    "clip_projection": ("CLIPVisionModelWithProjection", "CLIPVision", {"projection_dim": 5},
                        "vit", VIT | {"pre_norm": True, "patch_bias": False}),
    "siglip": ("SiglipVisionModel", "SiglipVision", {}, "vit",
               VIT | NO_HEAD | {"class_token": False, "global_pool": "map"}),
    "siglip_classifier": ("SiglipForImageClassification", "Siglip", {"vision_use_head": False},
                          "vit", VIT | PATCHES),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2", {}, "swinv2",
               SWIN | {"pretrained_window_sizes": (0, 0)}),
}  # fmt: skip
TINY = {"embed_dim": 192, "num_heads": 3, "depth": 2}
SMALL = {"embed_dim": 384, "num_heads": 6, "depth": 2}
BASE = {"embed_dim": 768, "num_heads": 12, "depth": 2}
SWIN_TINY = {"embed_dim": 96, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)}
MANIFESTS = {  # case: (manifest, family, fields)
    "google/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--"
    "imagenet2012-steps_20k-lr_0.03-res_224": ("vit", TINY),
    "google/imagenet21k-ViT-B_16": ("vit", BASE | {"num_classes": 21843, "pre_logits": 768}),
    "google/imagenet21k+imagenet2012-R50+ViT-B_16": (
        "vit", BASE | {"resnet_layers": (3, 4, 9), "patch_size": 1, "img_size": 384}),
    "google/vit_s16_i1k_90ep": (
        "vit", SMALL | PATCHES | {"pos_embed": "sincos2d", "pre_logits": 384}),
    "google/vit_b16_map_bare": ("vit", BASE | {"class_token": False, "global_pool": "map"}),
    "huggingface/vit-base-patch16-224": ("vit", BASE),
    "huggingface/deit-small-distilled-patch16-224": ("vit", SMALL | {"dist_token": True}),
    "huggingface/dinov2-small-imagenet1k-1-layer": (
        "vit", SMALL | {"patch_size": 14, "img_size": 518, "init_values": 1.0,
                        "global_pool": "token_avg"}),
    "huggingface/swin-tiny-patch4-window7-224": ("swin", SWIN_TINY),
    "huggingface/swinv2-tiny-patch4-window8-256": (
        "swinv2", SWIN_TINY | {"window_size": 8, "img_size": 256}),
    "microsoft/swin_tiny_patch4_window7_224": ("swin", SWIN_TINY),
    "microsoft/swinv2_tiny_patch4_window8_256": (
        "swinv2", SWIN_TINY | {"window_size": 8, "img_size": 256}),
}  # fmt: skip


def shapes_of(state):
    """Returns the shapes of a state dict."""
    return {name: list(array.shape) for name, array in state.items()}


def timm_cases():
    for case, (name, arguments, family, fields) in TIMM.items():
        model = timm.create_model(name, **arguments)
        yield f"timm/{case}", "timm", family, fields, shapes_of(model.state_dict())


def huggingface_cases():
    for case, (kind, config, own, family, fields) in HUGGINGFACE.items():
        sizes = HUGGINGFACE_SWIN if family.startswith("swin") else HUGGINGFACE_VIT
        if config == "Siglip":
            made = transformers.SiglipConfig(vision_config=sizes | own, num_labels=5)
        else:
            made = getattr(transformers, f"{config}Config")(**sizes | own)
        with tempfile.TemporaryDirectory() as folder:  # files have other names than the modules
            getattr(transformers, kind)(made).save_pretrained(folder)
            state = safetensors.torch.load_file(Path(folder) / "model.safetensors")
        if kind in ("CLIPVisionModel", "SiglipVisionModel"):  # as published; since 5 without
            state = {f"vision_model.{name}": array for name, array in state.items()}
        yield f"huggingface/{case}", "huggingface", family, fields, shapes_of(state)


def manifest_cases(parity):
    for case, (family, fields) in MANIFESTS.items():
        entries = json.loads((parity / "manifests" / f"{case}.json").read_text())["entries"]
        deep = re.compile(r"(encoderblock_|encoder\.layer\.|blocks\.)([2-9]|1[0-9])\b")
        prefix = "params/" * case.endswith("_bare")  # one that was cut out of a training state
        shapes = {prefix + name: e["shape"] for name, e in entries.items() if not deep.search(name)}
        yield case, case.partition("/")[0], family, fields, shapes


def main(parity):
    cases = {
        case: {"format": format, "family": family, "fields": fields, "entries": shapes}
        for cases in (timm_cases(), huggingface_cases(), manifest_cases(Path(parity)))
        for case, format, family, fields, shapes in cases
    }
    path = Path(__file__).parent / "weights" / "layouts.json.gz"
    text = json.dumps(cases, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])

"""Writes goldens/weights/zoo.*: what small models of timm's, transformers' and torchvision's give.

PYTHONPATH=tests python tests/goldens/write_zoo.py

Made with timm 1.0.31, transformers 5.24.0, torchvision 0.29.1 and torch 2.14.1. Each model is
filled with `parity.make_state` of its own keys and run in float64 on its case's images. A case has
the keys, the architecture where no file states it, the `config.json` that the library itself
writes, and the arguments of `load_pretrained`.
"""

import gzip
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import parity
import timm
import torch
import torchvision
import transformers
from timm.models import _hub

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5, "img_size": 64}
CR = {"embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "num_classes": 5, "img_size": 64}
NO_HEAD = SMALL | {"num_classes": 0}
TIMM = {  # case: (architecture, arguments, arguments of load_pretrained)
    "dinov3": ("vit_small_patch16_dinov3", SMALL, {}),
    "dinov3_rectangle": ("vit_base_patch16_dinov3", SMALL, {"img_size": (32, 96)}),
    "dinov3_gated_qkvb": (
        "vit_small_plus_patch16_dinov3_qkvb", SMALL | {"global_pool": "token"}, {}
    ),
    "lingbot": ("vit_giant_patch16_lingbot", NO_HEAD, {}),
    "eva": ("eva_giant_patch14_224", SMALL | {"img_size": 56, "mlp_ratio": 3.0}, {}),
    "eva02_small": ("eva02_small_patch14_336", SMALL | {"img_size": 56}, {}),
    "eva02_large": ("eva02_large_patch14_448", SMALL | {"img_size": (56, 84)}, {}),
    "eva02_clip": ("eva02_large_patch14_clip_336", SMALL | {"img_size": 56}, {}),
    "eva02_enormous": ("eva02_enormous_patch14_clip_224", SMALL | {"img_size": 56}, {}),
    "rope": ("vit_base_patch16_rope_ape_224", SMALL, {}),
    "rope_mixed": ("vit_large_patch16_rope_mixed_224", SMALL | {"img_size": (64, 32)}, {}),
    "rope_registers": ("vit_betwixt_patch16_rope_reg4_gap_256", SMALL, {}),
    "rope_max": ("vit_mediumd_patch16_rope_reg1_gap_256", SMALL | {"global_pool": "max"}, {}),
    "pe_core": ("vit_pe_core_large_patch14_336", SMALL | {"img_size": 56, "embed_dim": 64}, {}),
    "pe_core_gigantic": (
        "vit_pe_core_gigantic_patch14_448", SMALL | {"img_size": 56, "embed_dim": 64}, {}
    ),
    "pe_lang": ("vit_pe_lang_large_patch14_448", NO_HEAD | {"img_size": 56}, {}),
    "pe_spatial": ("vit_pe_spatial_small_patch16_512", NO_HEAD, {}),
    "aimv2": ("aimv2_huge_patch14_336", SMALL | {"img_size": 56}, {}),
    "beit3": ("beit3_base_patch16_224", SMALL, {}),
    "radio": ("vit_base_patch16_radio_v3", NO_HEAD, {}),
    "post_norm": ("vit_base_patch16_rpn_224", SMALL, {}),
    "relpos": ("vit_relpos_base_patch16_clsgap_224", SMALL | {"rel_pos_dim": 24}, {}),
    "relpos_shared": ("vit_srelpos_small_patch16_224", SMALL | {"rel_pos_type": "mlp-swin"}, {}),
    "relpos_table": (
        "vit_relpos_small_patch16_rpn_224", SMALL | {"rel_pos_type": "bias", "img_size": (32, 64)},
        {},
    ),
    "relpos_shared_table": (
        "vit_relpos_medium_patch16_cls_224",
        SMALL | {"rel_pos_type": "bias", "shared_rel_pos": True, "qk_norm": True}, {},
    ),
    "swinv2_cr": ("swinv2_cr_tiny_ns_224", CR, {}),
    "swinv2_cr_period": (
        "swinv2_cr_huge_384",
        CR | {"depths": (1, 3), "extra_norm_period": 2, "img_size": (72, 48), "window_ratio": 4},
        {},
    ),
    "parts": (
        "vit_tiny_patch16_224",
        SMALL | {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True,
                 "proj_bias": False, "global_pool": "avgmax", "pool_include_prefix": True},
        {},
    ),
}  # fmt: skip
HUGGINGFACE = {  # case: (class, fields of its configuration, arguments of load_pretrained)
    "dinov3": ("DINOv3ViT", {"num_register_tokens": 4, "rope_theta": 50.0}, {}),
    "dinov3_gated": (
        "DINOv3ViT",
        {"use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "key_bias": True,
         "proj_bias": False, "mlp_bias": False},
        {},
    ),
    "beit": ("Beit", {"use_relative_position_bias": True}, {}),
    "beit_token": (
        "Beit", {"use_shared_relative_position_bias": True, "use_mean_pooling": False}, {}
    ),
    "aimv2": (
        "Aimv2Vision", {"rms_norm_eps": 1e-4, "qkv_bias": True, "mlp_bias": True}, {}
    ),
    "aimv2_native": ("Aimv2Vision", {"is_native": True}, {}),
    "siglip2_naflex": (
        "Siglip2Vision", {"num_patches": 16, "hidden_act": "gelu_pytorch_tanh"},
        {"img_size": (64, 48)},
    ),
    "data2vec": ("Data2VecVision", {"use_relative_position_bias": True}, {}),
}  # fmt: skip
SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 2], "num_heads": [2, 4],
        "num_classes": 5}  # fmt: skip
TORCHVISION = {  # case: (class, its arguments, arguments of load_pretrained)
    "vit": (
        "VisionTransformer",
        {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 48,
         "mlp_dim": 80, "num_classes": 5},
        {"num_heads": 4},
    ),
    "vit_pre_logits": (
        "VisionTransformer",
        {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 48,
         "mlp_dim": 80, "num_classes": 5, "representation_size": 24},
        {"num_heads": 2},
    ),
    "swin": ("SwinTransformer", SWIN | {"window_size": [4, 4]}, {"img_size": (32, 40)}),
    "swin_small_map": (
        "SwinTransformer", SWIN | {"window_size": [6, 6]}, {"img_size": (32, 40), "window_size": 6}
    ),
    "swinv2": ("SwinV2", SWIN | {"window_size": [4, 4]}, {"img_size": (32, 40), "window_size": 4}),
}  # fmt: skip
SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip


def fill(model):
    """Gives a model the numbers of its keys; returns it in float64, and the keys."""
    state = model.state_dict()
    params = dict(model.named_parameters())
    entries = {
        key: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."),
              "kind": "param" if key in params else "buffer"}
        for key, tensor in state.items()
    }  # fmt: skip
    for key, entry in entries.items():
        if entry["kind"] == "param":
            array = parity.make_array(key, entry["shape"])
            params[key].data = torch.from_numpy(array)
    return model.eval().double(), entries


def run(model, size):
    images = np.moveaxis(parity.make_images(7, 2, *size), -1, 1).astype(np.float64)
    with torch.no_grad():
        return model(torch.from_numpy(images))


def run_patches(model, size):
    images = parity.make_images(7, 2, *size).astype(np.float64)
    (h, w), p = size, SIZES["patch_size"]
    grid = (h // p, w // p)
    patches = images.reshape(2, grid[0], p, grid[1], p, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = torch.from_numpy(patches.reshape(2, grid[0] * grid[1], -1))
    ones = torch.ones(patches.shape[:2], dtype=torch.long)
    with torch.no_grad():
        return model(patches, ones, torch.tensor([grid, grid]))


def sides(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def timm_case(name, args, arguments):
    model, entries = fill(timm.create_model(name, **args))
    with tempfile.TemporaryDirectory() as folder:
        _hub.save_config_for_hf(model, Path(folder) / "config.json", model_args=args)
        config = json.loads((Path(folder) / "config.json").read_text())
    size = sides(arguments.get("img_size", args["img_size"]))
    if "img_size" in arguments:
        model.set_input_size(img_size=size)
    return run(model, size), {"config": config, "size": size, "entries": entries}


def transformers_case(kind, fields, arguments):
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **fields})
    pooled = {"add_pooling_layer": True} if kind == "Data2VecVision" else {}
    model, entries = fill(getattr(transformers, f"{kind}Model")(config, **pooled))
    with tempfile.TemporaryDirectory() as folder:
        model.float().save_pretrained(folder)  # under the names that its files have
        names = timm.models.load_state_dict(f"{folder}/model.safetensors", device="cpu")
        config = json.loads((Path(folder) / "config.json").read_text())
    renamed = {
        theirs: key
        for theirs, tensor in names.items()
        for key, own in model.state_dict().items()
        if own.shape == tensor.shape and torch.equal(own, tensor)
    }
    entries = {key: entries[own] for key, own in renamed.items()}
    for theirs, own in renamed.items():
        array = torch.from_numpy(parity.make_array(theirs, entries[theirs]["shape"]))
        dict(model.named_parameters())[own].data = array
    size = sides(arguments.get("img_size", SIZES["image_size"]))
    if kind == "Siglip2Vision":  # whose images come as patches
        output = run_patches(model.double(), size).pooler_output
    else:
        output = run(model.double(), size).pooler_output
    return output, {"config": config, "size": size, "entries": entries}


def torchvision_case(kind, fields, arguments):
    own = torchvision.models.swin_transformer
    if kind == "SwinV2":
        fields = fields | {
            "block": own.SwinTransformerBlockV2, "downsample_layer": own.PatchMergingV2
        }  # fmt: skip
    made = own.SwinTransformer if "Swin" in kind else getattr(torchvision.models, kind)
    model, entries = fill(made(**fields))
    size = sides(arguments.get("img_size", fields.get("image_size")))
    return run(model, size), {"config": None, "size": size, "entries": entries}


def main():
    warnings.filterwarnings("ignore")
    cases, arrays = {}, {}
    for library, table, make in (
        ("timm", TIMM, timm_case), ("huggingface", HUGGINGFACE, transformers_case),
        ("torchvision", TORCHVISION, torchvision_case),
    ):  # fmt: skip
        for name, (model, fields, arguments) in table.items():
            logits, case = make(model, fields, arguments)
            key = f"{library}-{name}"
            cases[key] = {**case, "arguments": arguments}
            arrays[key] = logits.numpy()
            print(key, logits.shape)
    folder = Path(__file__).parent / "weights"
    (folder / "zoo.json.gz").write_bytes(gzip.compress(json.dumps(cases).encode(), mtime=0))
    np.savez_compressed(folder / "zoo.npz", **arrays)


if __name__ == "__main__":
    main()

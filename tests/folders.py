"""Folders written for timm and transformers, and what these libraries make of them.

python tests/folders.py write FOLDER [CASE ...], with the project's interpreter, writes small models
of random numbers and the logits that ours give; python tests/folders.py compare FOLDER [CASE ...],
with one that has timm and transformers and need not have JAX, loads each folder as it is and prints
the largest difference of the logits, by their standard deviation.
"""

import json
import sys
from pathlib import Path

import numpy as np
from applied import apply

VIT = {"depth": 2, "num_classes": 5}
SMALL = {"embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}
SWIN = {"depths": (1, 2, 1), "num_heads": (2, 4, 8), "embed_dim": 16, "img_size": 64,
        "window_size": 8, "num_classes": 5}  # fmt: skip
DINOV2 = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
BEIT = {"pos_embed": "relative", "pos_embed_at": "every", "init_values": 0.1,
        "global_pool": "avg", "fc_norm": True}  # fmt: skip
ROPE = {"rope_type": "axial", "rope_grid_indexing": "xy", "rope_temperature": 100.0}
EVA02 = {"rope_type": "axial", "rope_ref_grid": (4, 4), "act": "swiglu", "qkv_bias": "qv",
         "mlp_ratio": 16 / 3, "global_pool": "avg", "fc_norm": True}  # fmt: skip
DINOV3 = {"rope_type": "centred", "rope_rotate_half": True, "rope_temperature": 100.0,
          "pos_embed": "none", "reg_tokens": 4, "init_values": 1e-5, "norm_eps": 1e-5,
          "qkv_bias": "qv"}  # fmt: skip
TIMM = {  # case: (name, fields)
    "vit": ("vit_tiny_patch16_224", VIT),
    "vit_heads_act": ("vit_tiny_patch16_224",
                      VIT | SMALL | {"act": "quick_gelu", "qkv_bias": False, "in_chans": 4}),
    "vit_gap_rectangle": ("vit_small_patch16_224",
                          VIT | {"img_size": (64, 32), "class_token": False, "global_pool": "avg"}),
    "vit_mlp": ("vit", VIT | SMALL | {"mlp_ratio": 4304 / 1152, "global_pool": "avg"}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2, "num_classes": 0}),
    "siglip": ("vit_base_patch16_siglip_224", VIT | SMALL | {"act": "gelu_tanh"}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", VIT | SMALL),
    "hybrid_stem": ("vit_tiny_r_s16_p8_224", VIT),
    "hybrid": ("vit_small_r26_s32_224", VIT | {"embed_dim": 48, "num_heads": 4}),
    "beit": ("vit", VIT | SMALL | BEIT),
    "beit_shared": ("vit", VIT | SMALL | BEIT | {"pos_embed_at": "shared", "fc_norm": False}),
    "dinov3": ("vit_small_patch16_dinov3", {"depth": 2}),
    "dinov3_gated": ("vit", VIT | SMALL | DINOV3 | {"act": "swiglu", "img_size": (32, 48)}),
    "eva02": ("vit", VIT | SMALL | EVA02),
    "eva02_clip": ("vit", VIT | SMALL | EVA02 | {
        "scale_mlp_norm": True, "scale_attn_norm": True, "global_pool": "token", "fc_norm": False}),
    "eva_post_norm": ("vit", VIT | SMALL | {"norm_at": "after", "qkv_bias": "qv"}),
    "rope": ("vit", VIT | SMALL | ROPE | {"pos_embed": "none", "init_values": 1e-5}),
    "rope_mixed": ("vit", VIT | SMALL | ROPE | {"rope_type": "mixed", "no_embed_class": True}),
    "pe_core": ("vit_pe_core_base_patch16_224", {"depth": 2, "num_classes": 5}),
    "pe_without_reference": ("vit_pe_core_base_patch16_224", SMALL | {
        "depth": 2, "num_classes": 5, "rope_ref_grid": None, "pool_heads": None}),
    "pe_spatial": ("vit_pe_spatial_tiny_patch16_512", {"depth": 2, "num_classes": 0,
                                                       "img_size": 128}),
    "aimv2": ("aimv2_large_patch14_224", SMALL | {"depth": 2, "num_classes": 0}),
    "relpos": ("vit_relpos_medium_patch16_224", VIT | SMALL),
    "relpos_table": ("vit", VIT | SMALL | {
        "pos_embed": "relative", "pos_embed_at": "shared", "class_token": False,
        "global_pool": "avg", "qkv_bias": False, "norm_at": "after"}),
    "parts": ("vit", VIT | SMALL | {"qk_norm": True, "scale_attn_norm": True,
                                    "scale_mlp_norm": True, "proj_bias": False, "mlp_bias": False,
                                    "global_pool": "avgmax"}),
    "post_norm": ("vit_base_patch16_rpn_224", {"depth": 2, "num_classes": 5}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 2, 1, 1), "num_classes": 5}),
    "swin_small": ("swin", SWIN | {"qkv_bias": False, "window_clip": "per_axis",
                                   "pad_before_roll": False}),
    "swin_windows": ("swin_s3_tiny_224", {"depths": (1, 2, 1, 1), "embed_dim": 24}),
    "swinv2": ("swinv2", SWIN | {"pretrained_window_sizes": (6, 6, 3), "mlp_ratio": 2.0}),
    "swinv2_cr": ("swinv2_cr", SWIN | {
        "window_size": (4, 8), "extra_norm_stage": True, "window_clip": "per_axis",
        "pad_before_roll": False}),
}  # fmt: skip
EPS = {"norm_eps": 1e-12}
TOKENS = {"global_pool": "token_avg"}
HUGGINGFACE = {
    "vit": ("vit", VIT | SMALL | EPS),
    "vit_act_heads": ("vit", VIT | SMALL | EPS | {"num_heads": 2, "act": "gelu_tanh",
                                                  "norm_eps": 1e-6, "qkv_bias": False}),
    "deit_distilled": ("vit", VIT | SMALL | EPS | {"dist_token": True}),
    "deit_class_token": ("vit", VIT | SMALL | EPS | {"dist_token": True, "dist_head": False}),
    "dinov2": ("vit", VIT | SMALL | TOKENS | {"init_values": 1.0}),
    "dinov2_gated": ("vit", VIT | SMALL | TOKENS
                     | {"init_values": 1.0, "act": "swiglu", "mlp_ratio": 256 / 48}),
    "dinov2_registers": ("vit", VIT | SMALL | TOKENS | DINOV2),
    "beit": ("vit", VIT | SMALL | EPS | BEIT),
    "beit_shared": ("vit", SMALL | EPS | BEIT | {
        "depth": 2, "num_classes": 0, "pos_embed_at": "shared", "global_pool": "token",
        "fc_norm": False}),
    "dinov3": ("vit", SMALL | DINOV3 | {"depth": 2, "num_classes": 0}),
    "dinov3_gated": ("vit", SMALL | DINOV3 | {"depth": 2, "num_classes": 0, "act": "swiglu",
                                              "qkv_bias": False}),
    "aimv2": ("vit", SMALL | {
        "depth": 2, "num_classes": 0, "class_token": False, "norm_layer": "rmsnorm",
        "norm_eps": 1e-5, "patch_norm": True, "qkv_bias": False, "proj_bias": False,
        "mlp_bias": False, "act": "swiglu", "global_pool": "query", "pos_embed": "sincos2d_mae"}),
    "siglip": ("vit", VIT | SMALL | {"num_classes": 0, "class_token": False,
                                     "global_pool": "map", "act": "gelu_tanh"}),
    "siglip_classifier": ("vit", VIT | SMALL | {"class_token": False, "global_pool": "avg",
                                                "act": "gelu"}),
    "clip": ("vit", VIT | SMALL | {"num_classes": 0, "pre_norm": True, "patch_bias": False,
                                   "norm_eps": 1e-5, "act": "quick_gelu"}),
    "swin": ("swin", SWIN | {"window_size": 4, "window_clip": "min", "pad_before_roll": True}),
    "swinv2": ("swinv2", SWIN | {"pretrained_window_sizes": (6, 6, 3), "mask_value": -200.0}),
}  # fmt: skip
CASES = {f"timm-{k}": ("timm", *v) for k, v in TIMM.items()} | {
    f"huggingface-{k}": ("huggingface", *v) for k, v in HUGGINGFACE.items()
}
CROPS = ({"crop_mode": "center", "crop_fraction": 0.875, "interpolation": "bilinear"},
         {"crop_mode": "squash"}, {"crop_mode": "squash_crop", "crop_fraction": 0.9})  # fmt: skip


def write_case(case, folder):
    """Writes a case's folder, and images and logits beside it; returns model and metadata."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import unflatten_dict

    import vitswin_jax
    from vitswin_jax.data.augment.transforms import Preprocess
    from vitswin_jax.nn.layers import pair
    from vitswin_jax.weights.shapes import parameter_shapes

    format, name, fields = CASES[case]
    model = vitswin_jax.create_model(name, **fields)
    rng = np.random.default_rng(len(case))
    flat = {}
    for key, shape in parameter_shapes(model).items():
        array = 0.15 * rng.standard_normal(shape, np.float32)
        if key.endswith("qkv/bias") and fields.get("pos_embed") == "relative":
            array[1] = 0  # BEiT's keys have none
        flat[key] = jnp.asarray(array + key.endswith(("scale", "gamma")))
    variables = {"params": unflatten_dict(flat, sep="/")}
    index = sorted(CASES).index(case)
    size = pair(model.img_size)
    channels = model.in_chans
    mean, std = (0.4, 0.5, 0.6, 0.7)[:channels], (0.2, 0.25, 0.3, 0.35)[:channels]
    preprocess = Preprocess(size, mean, std, **CROPS[index % 3])
    classes = model.num_classes
    metadata = {
        "name": name,
        "preprocess": preprocess,
        "class_names": tuple(f"breed {i}" for i in range(classes)) if classes else None,
    }
    vitswin_jax.save_pretrained(folder / case, model, variables, format=format, metadata=metadata)
    images = rng.standard_normal((2, *size, channels), np.float32)
    with jax.default_matmul_precision("highest"):
        logits = apply(model, variables, images)
    picture = rng.integers(0, 256, (90, 120, channels), np.uint8)
    pixels = preprocess(picture)
    np.savez(folder / f"{case}.npz", images=images, logits=logits, picture=picture, pixels=pixels)
    return model, metadata


def their_logits(case, folder):
    """Returns what the case's library gives for the images, of the folder as it is."""
    import torch

    with np.load(folder / f"{case}.npz") as arrays:
        images = torch.from_numpy(np.moveaxis(arrays["images"], -1, 1).copy())
    if case.startswith("timm-"):
        import timm

        model = timm.create_model(f"local-dir:{folder / case}", pretrained=True).eval()
        with torch.no_grad():
            return model(images).numpy()
    import transformers

    config = json.loads((folder / case / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    if config["architectures"][0].endswith("ForImageClassification"):
        kind = transformers.AutoModelForImageClassification
    model, loading = kind.from_pretrained(folder / case, output_loading_info=True)
    wrong = {key: names for key, names in loading.items() if names}
    if wrong:
        raise ValueError(f"{case}: {wrong}")
    with torch.no_grad():
        output = model.eval()(images)
    return (output.logits if hasattr(output, "logits") else output.pooler_output).numpy()


def their_pixels(case, folder):
    """Returns what the case's library makes of the picture, as its folder states."""
    from PIL import Image

    with np.load(folder / f"{case}.npz") as arrays:
        picture = Image.fromarray(arrays["picture"])
    if case.startswith("timm-"):
        import timm
        from timm.data import create_transform, resolve_model_data_config

        model = timm.create_model(f"local-dir:{folder / case}", pretrained=False)
        pixels = create_transform(**resolve_model_data_config(model))(picture).numpy()
    else:
        import transformers

        processor = transformers.AutoImageProcessor.from_pretrained(folder / case)
        pixels = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
    return np.moveaxis(pixels, 0, -1)


def pixel_difference(case, folder):
    """Returns the mean difference of the pixels; libraries resize in their own ways."""
    with np.load(folder / f"{case}.npz") as arrays:
        ours = arrays["pixels"]
    return float(np.abs(their_pixels(case, folder) - ours).mean())


def difference(case, folder):
    """Returns the largest difference of the logits, by their standard deviation."""
    with np.load(folder / f"{case}.npz") as arrays:
        ours = arrays["logits"]
    return float(np.abs(their_logits(case, folder) - ours).max() / ours.std())


def main(command, folder, *cases):
    folder = Path(folder)
    chosen = [case for case in CASES if not cases or case in cases]
    for case in chosen:
        if command == "write":
            write_case(case, folder)
        else:
            try:
                pixels = pixel_difference(case, folder)
                print(f"{case:36} {difference(case, folder):.1e} {pixels:.1e}")
            except Exception as error:
                print(f"{case:36} {type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    main(*sys.argv[1:])

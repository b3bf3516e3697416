"""The published sizes of the ViT family, as plain data: fields that differ from the defaults.

Names are timm's. Sources: ViT and its hybrids, tables 1 and 6 of arXiv:2010.11929; Ti and S,
table 1 of DeiT (arXiv:2012.12877); g and G, table 2 of arXiv:2106.04560, with big_vision's MLP
widths; SO400M, arXiv:2305.13035; DeiT-3, arXiv:2204.07118; DINOv2, arXiv:2304.07193 and 2309.16588;
SigLIP, arXiv:2303.15343 and 2502.14786; CLIP, arXiv:2103.00020, OpenCLIP's and MetaCLIP's towers;
FlexiViT, arXiv:2212.08013; BEiT and BEiT v2, arXiv:2106.08254 and 2208.06366; all others, timm's
code, which tests/goldens/models/timm_variants.json was read from.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]
Variants = dict[str, tuple[str, Fields]]

SIZES: dict[str, Fields] = {
    "test": {"embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3.0},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "xsmall": {"embed_dim": 256, "depth": 10, "num_heads": 4},
    "wee": {"embed_dim": 256, "depth": 14, "num_heads": 4, "mlp_ratio": 5.0},
    "little": {"embed_dim": 320, "depth": 14, "num_heads": 5, "mlp_ratio": 5.6},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "mediumd": {"embed_dim": 512, "depth": 20, "num_heads": 8},
    "betwixt": {"embed_dim": 640, "depth": 12, "num_heads": 10},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "base_plus": {"embed_dim": 896, "depth": 12, "num_heads": 14},
    "so150m": {"embed_dim": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2304 / 896},
    "so150m2": {"embed_dim": 832, "depth": 21, "num_heads": 13, "mlp_ratio": 2176 / 832},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 6144 / 1408},
    "gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 8192 / 1664},
    "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 4304 / 1152},
    "giantopt": {"embed_dim": 1536, "depth": 40, "num_heads": 16},
}

PATCHES: dict[str, tuple[int, ...]] = {
    "tiny": (14, 16, 32),
    "small": (8, 14, 16, 32),
    "base": (8, 14, 16, 32),
    "large": (14, 16, 32),
    "huge": (14, 16, 32),
    "giant": (14,),
    "gigantic": (14,),
}

LARGE_IMAGE = {14: 378}  # 14 does not divide 384; 378 has the grid that a convolution on 384 gives

# Position only on patches, and every token of the grid read: what has no class token.
GAP: Fields = {"class_token": False, "global_pool": "avg"}

GAP_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {  # (size, patch_size) -> img_sizes
    ("small", 16): (224,),
    ("medium", 16): (240, 256, 384),
    ("betwixt", 16): (256,),
    ("base", 16): (224,),
    ("huge", 14): (224,),
    ("huge", 16): (448,),
    ("giant", 16): (224,),
}
GAP_OWN: dict[str, Fields] = {  # size -> what timm's model has besides
    "medium": {"init_values": 1e-6, "qkv_bias": False},
    "betwixt": {"init_values": 1e-6, "qkv_bias": False},
    "base": {"num_heads": 16},
}

REGISTERS_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {  # (size, reg_tokens) -> img_sizes
    ("wee", 1): (256,),
    ("little", 1): (256,),
    ("little", 4): (256,),
    ("medium", 1): (256,),
    ("medium", 4): (256,),
    ("mediumd", 4): (256, 384),
    ("betwixt", 1): (256,),
    ("betwixt", 4): (256, 384),
    ("base", 4): (256,),
    ("so150m", 4): (256, 384),
    ("so150m2", 1): (256, 384, 448),
}
PATCH_POSITIONS: Fields = {"no_embed_class": True, "fc_norm": True}
REGISTERS_OWN: dict[str, Fields] = {  # sizes that are not like the others
    "base": PATCH_POSITIONS,
    "so150m": {},
    "so150m2": {"init_values": 1e-5, "fc_norm": True, "qkv_bias": False},
}

# (layers of each ResNet stage, patch on its map, stride that the name says); () is the root alone.
HYBRIDS: dict[str, tuple[str, tuple[int, ...], int, tuple[int, ...]]] = {
    "vit_tiny_r_s16_p8": ("tiny", (), 8, (224, 384)),
    "vit_small_r26_s32": ("small", (2, 2, 2, 2), 1, (224, 384)),
    "vit_base_r26_s32": ("base", (2, 2, 2, 2), 1, (224,)),
    "vit_base_r50_s16": ("base", (3, 4, 9), 1, (224, 384)),
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 1, (224, 384)),
}

DEIT_IMAGES = {"tiny": (224,), "small": (224,), "base": (224, 384)}

DEIT3_IMAGES: dict[str, tuple[int, tuple[int, ...]]] = {  # size -> (patch_size, img_sizes)
    "small": (16, (224, 384)),
    "medium": (16, (224,)),
    "base": (16, (224, 384)),
    "large": (16, (224, 384)),
    "huge": (14, (224,)),
}

DINOV2: Fields = {"patch_size": 14, "img_size": 518, "init_values": 1e-5}
DINOV2_SIZES: dict[str, Fields] = {
    "small": SIZES["small"],
    "base": SIZES["base"],
    "large": SIZES["large"],
    "giant": {  # another giant than ViT-g, with a gated MLP
        "embed_dim": 1536,
        "depth": 40,
        "num_heads": 24,
        "mlp_ratio": 8192 / 1536,
        "act": "swiglu",
    },
}

TIPS: Fields = {
    "patch_size": 14, "img_size": 448, "reg_tokens": 1, "no_embed_class": True, "init_values": 1.0,
}  # fmt: skip
TIPS_SIZES = {
    **{size: SIZES[size] for size in ("base", "large", "so400m")},
    "giant": DINOV2_SIZES["giant"],
}

BEIT: Fields = {
    "pos_embed": "relative", "pos_embed_at": "every", "init_values": 1e-5, "global_pool": "avg",
    "fc_norm": True,
}  # fmt: skip
BEIT_IMAGES = {"base": (224, 384), "large": (224, 384, 512)}

SIGLIP_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {  # (size, patch_size) -> img_sizes
    ("base", 16): (224, 256, 384, 512),
    ("base", 32): (256,),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
SIGLIP_GAP_IMAGES = SIGLIP_IMAGES | {
    ("so400m", 14): (224, 378, 384, 448, 896)  # PaliGemma's towers
}
TANH: Fields = {"act": "gelu_tanh"}
SIGLIP_OWN: dict[tuple[str, int, int], Fields] = {  # timm's newer rows have big_vision's GELU
    ("base", 32, 256): TANH,
    ("large", 16, 512): TANH,
    **dict.fromkeys((("so400m", 16, img_size) for img_size in (256, 384, 512)), TANH),
    **dict.fromkeys((("giantopt", 16, img_size) for img_size in (256, 384)), TANH),
    ("so400m", 14, 384): {"crop_to_patches": True},
}

CLIP: Fields = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
CLIP_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {
    ("xsmall", 16): (224,),
    ("medium", 16): (224,),
    ("medium", 32): (224,),
    ("betwixt", 32): (224,),
    ("base", 16): (224, 384),
    ("base", 32): (224, 256, 384, 448),
    ("large", 14): (224, 336),
    ("huge", 14): (224, 336, 378),
    ("giant", 14): (224,),
    ("gigantic", 14): (224, 378),
}
QUICKGELU_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {
    ("base", 16): (224,),
    ("base", 32): (224,),
    ("large", 14): (224, 336),
    ("huge", 14): (224, 378),
    ("gigantic", 14): (224,),
}


def _at(size: str, patch_size: int, img_size: int, **fields: Any) -> tuple[str, Fields]:
    """Returns a row."""
    return "vit", SIZES[size] | {"patch_size": patch_size, "img_size": img_size} | fields


def _vit() -> Variants:
    rows = {
        f"vit_{size}_patch{patch}_{img_size}": _at(size, patch, img_size)
        for size, patches in PATCHES.items()
        for patch in patches
        for img_size in (224, LARGE_IMAGE.get(patch, 384))
    }
    for (size, patch), img_sizes in GAP_IMAGES.items():
        for img_size in img_sizes:
            fields = GAP | GAP_OWN.get(size, {})
            rows[f"vit_{size}_patch{patch}_gap_{img_size}"] = _at(size, patch, img_size, **fields)
    for prefix, (size, layers, patch, img_sizes) in HYBRIDS.items():
        for img_size in img_sizes:
            rows[f"{prefix}_{img_size}"] = _at(size, patch, img_size, resnet_layers=layers)
    return rows


def _deit() -> Variants:
    rows = {}
    for size, img_sizes in DEIT_IMAGES.items():
        for img_size in img_sizes:
            rows[f"deit_{size}_patch16_{img_size}"] = _at(size, 16, img_size)
            rows[f"deit_{size}_distilled_patch16_{img_size}"] = _at(
                size, 16, img_size, dist_token=True
            )
    deit3 = {"no_embed_class": True, "init_values": 1e-6}
    for size, (patch, img_sizes) in DEIT3_IMAGES.items():
        for img_size in img_sizes:
            rows[f"deit3_{size}_patch{patch}_{img_size}"] = _at(size, patch, img_size, **deit3)
    return rows


def _dinov2() -> Variants:
    registers = {"reg_tokens": 4, "no_embed_class": True}
    rows = {}
    for size, fields in DINOV2_SIZES.items():
        rows[f"vit_{size}_patch14_dinov2"] = ("vit", fields | DINOV2)
        rows[f"vit_{size}_patch14_reg4_dinov2"] = ("vit", fields | DINOV2 | registers)
    return rows


def _towers() -> Variants:
    """Returns the image towers of SigLIP and CLIP."""
    tables = (
        ("siglip", SIGLIP_IMAGES, {"class_token": False, "global_pool": "map"}),
        ("siglip_gap", SIGLIP_GAP_IMAGES, GAP),
        ("clip", CLIP_IMAGES, CLIP),
        ("clip_quickgelu", QUICKGELU_IMAGES, CLIP | {"act": "quick_gelu"}),
    )
    rows = {
        f"vit_{size}_patch{patch}_{word}_{img_size}": _at(size, patch, img_size, **fields | own)
        for word, images, fields in tables
        for (size, patch), img_sizes in images.items()
        for img_size in img_sizes
        for own in [SIGLIP_OWN.get((size, patch, img_size), {}) if "siglip" in word else {}]
    }
    rows["vit_base_patch16_plus_clip_240"] = _at("base_plus", 16, 240, **CLIP)
    for size, fields in TIPS_SIZES.items():
        rows[f"vit_{size}_patch14_reg1_tipsv2"] = ("vit", fields | TIPS)
    return rows


def _registers() -> Variants:
    """Returns timm's own ViTs with registers and without a class token."""
    rows = {}
    for (size, registers), img_sizes in REGISTERS_IMAGES.items():
        own = REGISTERS_OWN.get(size, PATCH_POSITIONS | {"init_values": 1e-5})
        for img_size in img_sizes:
            rows[f"vit_{size}_patch16_reg{registers}_gap_{img_size}"] = _at(
                size, 16, img_size, reg_tokens=registers, **GAP | own
            )
    pool = {"class_token": False, "global_pool": "map"}
    rows["vit_so150m_patch16_reg4_map_256"] = _at("so150m", 16, 256, reg_tokens=4, **pool)
    return rows


def _beit() -> Variants:
    rows = {}
    for size, img_sizes in BEIT_IMAGES.items():
        for img_size in img_sizes:
            rows[f"beit_{size}_patch16_{img_size}"] = _at(size, 16, img_size, **BEIT)
        rows[f"beitv2_{size}_patch16_224"] = _at(size, 16, 224, **BEIT)
    for img_size in BEIT_IMAGES["base"]:
        rows[f"beit_base_patch16_{img_size}"][1]["init_values"] = 0.1
    return rows


def _others() -> Variants:
    """Returns plain ViTs of other sizes: FlexiViT, EVA-L, and timm's own."""
    scaled = {"init_values": 1e-5}
    rows = {
        f"flexivit_{size}": _at(size, 16, 240, no_embed_class=True)
        for size in ("small", "base", "large")
    }
    for img_size in (196, 336):
        rows[f"eva_large_patch14_{img_size}"] = _at(
            "large", 14, img_size, global_pool="avg", fc_norm=True
        )
    return rows | {
        "vit_base_patch16_224_miil": _at("base", 16, 224, qkv_bias=False),
        "vit_base_patch16_plus_240": _at("base_plus", 16, 240, **scaled),
        "vit_base_patch32_plus_256": _at("base_plus", 32, 256, **scaled),
        "vit_small_patch16_36x1_224": _at("small", 16, 224, **scaled | {"depth": 36}),
        "test_vit": _at("test", 16, 160),
        "test_vit2": _at("test", 16, 160, **GAP | scaled, depth=8, reg_tokens=1, fc_norm=True),
    }


VARIANTS: Variants = _vit() | _deit() | _dinov2() | _towers() | _registers() | _beit() | _others()

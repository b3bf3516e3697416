"""The published sizes of the ViT family, as plain data: fields that differ from the defaults.

Names are timm's. Sources: ViT and its hybrids, tables 1 and 6 of arXiv:2010.11929; Ti and S,
table 1 of DeiT (arXiv:2012.12877); g and G, table 2 of arXiv:2106.04560, with big_vision's MLP
widths; SO400M, arXiv:2305.13035; DeiT-3, arXiv:2204.07118; DINOv2, arXiv:2304.07193 and 2309.16588;
SigLIP, arXiv:2303.15343 and 2502.14786; CLIP, arXiv:2103.00020, OpenCLIP's and MetaCLIP's towers.
"""

from __future__ import annotations

import re
from typing import Any

Fields = dict[str, Any]
Variants = dict[str, tuple[str, Fields]]

SIZES: dict[str, Fields] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 6144 / 1408},
    "gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 8192 / 1664},
    "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 4304 / 1152},
    "giantopt": {"embed_dim": 1536, "depth": 40, "num_heads": 16, "act": "gelu_tanh"},
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

GAP_IMAGES: tuple[tuple[str, int, int], ...] = (  # (size, patch_size, img_size)
    ("small", 16, 224),
    ("base", 16, 224),
    ("huge", 14, 224),
    ("huge", 16, 448),
    ("giant", 16, 224),
)

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

SIGLIP_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {  # (size, patch_size) -> img_sizes
    ("base", 16): (224, 256, 384, 512),
    ("base", 32): (256,),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
SIGLIP_GAP_IMAGES = SIGLIP_IMAGES | {("so400m", 14): (224, 378, 448, 896)}  # PaliGemma's towers

CLIP: Fields = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
CLIP_IMAGES: dict[tuple[str, int], tuple[int, ...]] = {
    ("medium", 16): (224,),
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
    return "vit", SIZES[size] | {"patch_size": patch_size, "img_size": img_size} | fields


def _vit() -> Variants:
    rows = {
        f"vit_{size}_patch{patch}_{img_size}": _at(size, patch, img_size)
        for size, patches in PATCHES.items()
        for patch in patches
        for img_size in (224, LARGE_IMAGE.get(patch, 384))
    }
    for size, patch, img_size in GAP_IMAGES:
        rows[f"vit_{size}_patch{patch}_gap_{img_size}"] = _at(size, patch, img_size, **GAP)
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
    return {
        f"vit_{size}_patch{patch}_{word}_{img_size}": _at(size, patch, img_size, **fields)
        for word, images, fields in tables
        for (size, patch), img_sizes in images.items()
        for img_size in img_sizes
    }


VARIANTS: Variants = _vit() | _deit() | _dinov2() | _towers()

LETTERS = {
    "Ti": "tiny",
    "S": "small",
    "B": "base",
    "L": "large",
    "H": "huge",
    "g": "giant",
    "G": "gigantic",
}
"""The ViT paper's sizes, as in B/16 and ViT-B_16."""

PAPER_HYBRIDS = {
    "R+Ti/16": "vit_tiny_r_s16_p8",
    "R26+S/32": "vit_small_r26_s32",
    "R26+B/32": "vit_base_r26_s32",
    "R50+B/16": "vit_base_r50_s16",
    "R50+L/32": "vit_large_r50_s32",
}


def _aliases() -> dict[str, str]:
    """Returns the names of Google's papers and code: B/16, ViT-B_16, R50+ViT-B_16-384, R26_S_32."""
    letters = {size: letter for letter, size in LETTERS.items()}
    plain = {
        f"{letters[size]}/{patch}": f"vit_{size}_patch{patch}"
        for size, patches in PATCHES.items()
        for patch in patches
    }
    aliases = {}
    for paper, prefix in (plain | PAPER_HYBRIDS).items():
        stem, _, vit = paper.rpartition("+")
        stem = stem and stem + "+"
        under = vit.replace("/", "_")
        names = {paper, stem + under, f"{stem}ViT-{vit}", f"{stem}ViT-{under}"}
        names.add(stem.replace("+", "_") + under)  # AugReg's files
        for name in names:
            for variant in (v for v in VARIANTS if re.fullmatch(rf"{prefix}_\d+", v)):
                img_size = variant.rpartition("_")[2]
                aliases[f"{name}-{img_size}"] = variant
                if img_size == "224":
                    aliases[name] = variant
    return aliases | {
        # The same weights; at 384 a convolution leaves six pixels out, at 378 none.
        "vit_so400m_patch14_siglip_384": "vit_so400m_patch14_siglip_378",
        "vit_so400m_patch14_siglip_gap_384": "vit_so400m_patch14_siglip_gap_378",
    }


ALIASES: dict[str, str] = _aliases()

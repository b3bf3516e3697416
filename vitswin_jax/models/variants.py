"""The published sizes, as plain data: fields that differ from a family's defaults.

Names are timm's. Sources: ViT is table 1 of arXiv:2010.11929, with Ti and S from DeiT
(arXiv:2012.12877, table 1); Swin is section 3.3 and table 7 of arXiv:2103.14030.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

VIT_SIZES: dict[str, Fields] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}

VIT_PATCHES: dict[str, tuple[int, ...]] = {
    "tiny": (14, 16, 32),
    "small": (14, 16, 32),
    "base": (8, 14, 16, 32),
    "large": (14, 16, 32),
    "huge": (14, 16, 32),
}

LARGE_IMAGE = {14: 378}  # 14 does not divide 384; 378 has the grid that a convolution on 384 gives

SWIN_SIZES: dict[str, Fields] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}

SWIN_IMAGES: dict[str, tuple[tuple[int, int], ...]] = {  # (window_size, img_size)
    "tiny": ((7, 224),),
    "small": ((7, 224),),
    "base": ((7, 224), (12, 384)),
    "large": ((7, 224), (12, 384)),
}


def _vit_variants() -> dict[str, tuple[str, Fields]]:
    rows = {}
    for size, patches in VIT_PATCHES.items():
        for patch in patches:
            for img_size in (224, LARGE_IMAGE.get(patch, 384)):
                fields = VIT_SIZES[size] | {"patch_size": patch, "img_size": img_size}
                rows[f"vit_{size}_patch{patch}_{img_size}"] = ("vit", fields)
    return rows


def _swin_variants() -> dict[str, tuple[str, Fields]]:
    rows = {}
    for size, images in SWIN_IMAGES.items():
        for window, img_size in images:
            fields = SWIN_SIZES[size] | {"window_size": window, "img_size": img_size}
            rows[f"swin_{size}_patch4_window{window}_{img_size}"] = ("swin", fields)
    return rows


VARIANTS: dict[str, tuple[str, Fields]] = _vit_variants() | _swin_variants()
"""Name -> (family, fields)."""

LETTERS = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
"""The ViT paper's sizes, as in B/16 and ViT-B_16."""

CLASSES = {"in22k": 21841, "in21k": 21843, "22k": 21841}
"""Heads of weights that were trained on ImageNet-22k (Microsoft) and ImageNet-21k (Google)."""

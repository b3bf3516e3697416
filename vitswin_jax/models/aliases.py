"""Other names of the variants: of the papers, of other codes, of older timm.

A name may also tell whose weights are meant: by a tag, as in timm's `variant.tag`, or by an ending.
"""

from __future__ import annotations

import re

from vitswin_jax.models import swin_variants, vit_variants

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


def _papers() -> dict[str, str]:
    """Returns the names of Google's papers and code: B/16, ViT-B_16, R50+ViT-B_16-384, R26_S_32."""
    letters = {size: letter for letter, size in LETTERS.items()}
    plain = {
        f"{letters[size]}/{patch}": f"vit_{size}_patch{patch}"
        for size, patches in vit_variants.PATCHES.items()
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
            for variant in (v for v in vit_variants.VARIANTS if re.fullmatch(rf"{prefix}_\d+", v)):
                img_size = variant.rpartition("_")[2]
                aliases[f"{name}-{img_size}"] = variant
                if img_size == "224":
                    aliases[name] = variant
    return aliases


RENAMED: dict[str, str] = {
    "vit_base_patch16_224_miil_in21k": "vit_base_patch16_224_miil.in21k",
    "vit_base_patch32_224_clip_laion2b": "vit_base_patch32_clip_224.laion2b",
    "vit_large_patch14_224_clip_laion2b": "vit_large_patch14_clip_224.laion2b",
    "vit_huge_patch14_224_clip_laion2b": "vit_huge_patch14_clip_224.laion2b",
    "vit_giant_patch14_224_clip_laion2b": "vit_giant_patch14_clip_224.laion2b",
    "vit_base_resnet50_224_in21k": "vit_base_r50_s16_224.orig_in21k",
    "vit_base_resnet50_384": "vit_base_r50_s16_384.orig_in21k_ft_in1k",
    "swinv2_base_window12_192_22k": "swinv2_base_window12_192.ms_in22k",
    "swinv2_large_window12_192_22k": "swinv2_large_window12_192.ms_in22k",
}
"""timm's name from before it had tags -> variant and tag; the others had one of `ENDINGS`."""

TORCHVISION: dict[str, str] = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_s": "swinv2_small_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
}

ALIASES: dict[str, str] = _papers() | swin_variants.ALIASES | TORCHVISION
"""Other name -> variant."""

ENDINGS: tuple[tuple[str, str], ...] = (
    ("_in21ft1k", "fb_in22k_ft_in1k"),
    ("_in21k", "augreg_in21k"),
    ("_in21k", "orig_in21k"),
    ("_sam", "sam_in1k"),
    ("_dino", "dino"),
    ("_22kft1k", "ms_in22k_ft_in1k"),
    ("_in22k", "ms_in22k"),
)
"""What timm's earlier names end in -> the tag of today: the first that the variant has."""

MICROSOFT_ENDINGS: dict[str, int] = {
    "_22kto1k_finetune": 1000, "_22kto1k_ft": 1000, "_22kto1k": 1000, "_22k": 21841,
}  # fmt: skip
"""What Microsoft's names end in -> classes of the head."""

"""Other names of the variants: those of the papers, of Google's and Microsoft's code."""

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


ALIASES: dict[str, str] = _papers() | swin_variants.ALIASES
"""Other name -> variant."""

"""Every variant has as many parameters as its original.

The numbers are those of the table of costs; tests/plan/test_variant_costs.py traces the models.
"""

import re

import pytest
import timm_models

from vitswin_jax import model_names
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.plan.variant_costs import variant_costs

# Parameters with 1000 classes: the sums over timm's models of these names, or, where it has no such
# name, of its model with that patch_size and img_size. Those in vit_jax's models_test.py are the
# same. Microsoft's own, swin_tiny_c24 and swin_mlp, are of its definitions; its README has them in
# millions, and below they follow from Swin's. Keys of a BEiT have no bias in timm, and zeros here.
PUBLISHED = {
    name: row["parameters"]
    + (row["depth"] * row["embed_dim"] if row.get("pos_embed") == "relative" else 0)
    for name, row in timm_models.MODELS.items()
} | {
    "swin_mlp_base_patch4_window7_224": 60_659_416,
    "swin_mlp_tiny_c12_patch4_window8_256": 21_152_072,
    "swin_mlp_tiny_c24_patch4_window8_256": 20_386_632,
    "swin_mlp_tiny_c6_patch4_window8_256": 22_682_952,
    "swin_tiny_c24_patch4_window8_256": 28_306_432,
    "vit_base_patch14_224": 86_475_496,
    "vit_base_patch14_378": 86_838_760,
    "vit_base_patch8_384": 87_744_232,
    "vit_giant_patch14_378": 1_013_277_416,
    "vit_gigantic_patch14_378": 1_845_227_752,
    "vit_huge_patch14_378": 632_651_240,
    "vit_huge_patch16_224": 632_199_400,
    "vit_huge_patch16_384": 632_685_800,
    "vit_huge_patch32_224": 634_960_360,
    "vit_huge_patch32_384": 635_081_960,
    "vit_large_patch14_378": 304_688_104,
    "vit_small_patch14_224": 22_004_584,
    "vit_small_patch14_378": 22_186_216,
    "vit_small_patch16_gap_224": 22_049_896,
    "vit_small_patch8_384": 22_638_952,
    "vit_tiny_patch14_224": 5_694_376,
    "vit_tiny_patch14_378": 5_785_192,
    "vit_tiny_patch32_224": 6_131_560,
    "vit_tiny_patch32_384": 6_149_800,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_variant_has_the_published_number_of_parameters(name):
    assert variant_costs()[name].parameters == PUBLISHED[name]


MOE = set(model_names("swin_moe_*"))  # whose counts are published nowhere


def test_every_variant_has_a_number_to_be_held_against():
    assert PUBLISHED.keys() | MOE == VARIANTS.keys()


def blocks_of(embed_dim, depths, head_dim):
    """(width, heads, stage, whether windows are shifted) of each block of a Swin."""
    return [
        (embed_dim * 2**stage, embed_dim * 2**stage // head_dim, stage, block % 2)
        for stage, depth in enumerate(depths)
        for block in range(depth)
    ]


TINY, DEEP = (2, 2, 6, 2), (2, 2, 18, 2)


@pytest.mark.parametrize(
    ("name", "swin", "sizes", "window"),
    [
        ("swin_mlp_tiny_c24_patch4_window8_256", "tiny", (96, TINY, 24), 8),
        ("swin_mlp_tiny_c12_patch4_window8_256", "tiny", (96, TINY, 12), 8),
        ("swin_mlp_tiny_c6_patch4_window8_256", "tiny", (96, TINY, 6), 8),
        ("swin_mlp_base_patch4_window7_224", "base", (128, DEEP, 32), 7),
    ],
)
def test_swin_mlp_has_a_matrix_over_each_heads_window_in_place_of_attention(
    name, swin, sizes, window
):
    attention = sum(4 * c**2 + 4 * c + 13**2 * c // 32 for c, *_ in blocks_of(*sizes))
    spatial = sum(heads * (window**4 + window**2) for _, heads, *_ in blocks_of(*sizes))
    assert PUBLISHED[name] == PUBLISHED[f"swin_{swin}_patch4_window7_224"] - attention + spatial


def test_swin_c24_has_other_bias_tables_than_swin():
    tables = [
        sum(rows * heads for _, heads, *_ in blocks_of(96, TINY, head_dim))
        for rows, head_dim in ((13**2, 32), (15**2, 24))
    ]
    swin = PUBLISHED["swin_tiny_patch4_window7_224"]
    assert PUBLISHED["swin_tiny_c24_patch4_window8_256"] == swin - tables[0] + tables[1]


@pytest.mark.parametrize("name", sorted(MOE))
def test_swin_moe_has_experts_and_routers_and_biases_that_an_mlp_makes(name):
    """From Swin's count: bias tables go, and so do the biases at the end of all MLPs."""
    size, experts = name.split("_")[2], int(re.search(r"(\d+)expert", name)[1])
    blocks = blocks_of({"small": 96, "base": 128}[size], DEEP, 32)
    want = PUBLISHED[f"swin_{size}_patch4_window7_224"]
    for c, heads, stage, shifted in blocks:
        want += (2 + 1 + heads) * 512 - 13**2 * heads - c
        if stage >= 2 and shifted:
            want += (experts - 1) * (8 * c**2 + 4 * c) + experts * c
    assert variant_costs()[name].parameters == want

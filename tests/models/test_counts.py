"""Every variant has as many parameters as its original.

The numbers are those of the table of costs; tests/plan/test_variant_costs.py traces the models.
"""

import re

import pytest

from vitswin_jax import model_names
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.plan.variant_costs import variant_costs

# Parameters with 1000 classes: the sums over timm 1.0.31's models of these names, or, where it has
# the size but not the name, of its model with that patch_size and img_size. Those in vit_jax's
# models_test.py are the same. Microsoft's own, swin_tiny_c24 and swin_mlp, are of its definitions;
# its README has them in millions, and below they follow from Swin's.
PUBLISHED = {
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_huge_patch14_224": 632_126_440,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_small_patch16_224": 22_050_664,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_tiny_patch16_224": 5_717_416,
    "swin_base_patch4_window12_384": 87_903_584,
    "swin_base_patch4_window7_224": 87_768_224,
    "swin_large_patch4_window12_384": 196_735_516,
    "swin_large_patch4_window7_224": 196_532_476,
    "swin_mlp_base_patch4_window7_224": 60_659_416,
    "swin_mlp_tiny_c12_patch4_window8_256": 21_152_072,
    "swin_mlp_tiny_c24_patch4_window8_256": 20_386_632,
    "swin_mlp_tiny_c6_patch4_window8_256": 22_682_952,
    "swin_s3_base_224": 71_125_762,
    "swin_s3_small_224": 49_737_298,
    "swin_s3_tiny_224": 28_328_674,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_tiny_c24_patch4_window8_256": 28_306_432,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swinv2_base_window12_192": 87_918_816,
    "swinv2_base_window12to16_192to256": 87_918_816,
    "swinv2_base_window12to24_192to384": 87_918_816,
    "swinv2_base_window16_256": 87_918_816,
    "swinv2_base_window8_256": 87_918_816,
    "swinv2_large_window12_192": 196_739_932,
    "swinv2_large_window12to16_192to256": 196_739_932,
    "swinv2_large_window12to24_192to384": 196_739_932,
    "swinv2_small_window16_256": 49_728_418,
    "swinv2_small_window8_256": 49_728_418,
    "swinv2_tiny_window16_256": 28_347_154,
    "swinv2_tiny_window8_256": 28_347_154,
    "vit_base_patch14_224": 86_475_496,
    "vit_base_patch14_378": 86_838_760,
    "vit_base_patch14_dinov2": 87_348_712,
    "vit_base_patch14_reg4_dinov2": 87_351_016,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch16_clip_224": 86_568_424,
    "vit_base_patch16_clip_384": 86_860_264,
    "vit_base_patch16_clip_quickgelu_224": 86_568_424,
    "vit_base_patch16_gap_224": 86_566_120,
    "vit_base_patch16_siglip_224": 93_653_224,
    "vit_base_patch16_siglip_256": 93_699_304,
    "vit_base_patch16_siglip_384": 93_945_064,
    "vit_base_patch16_siglip_512": 94_289_128,
    "vit_base_patch16_siglip_gap_224": 86_566_120,
    "vit_base_patch16_siglip_gap_256": 86_612_200,
    "vit_base_patch16_siglip_gap_384": 86_857_960,
    "vit_base_patch16_siglip_gap_512": 87_202_024,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch32_384": 88_297_192,
    "vit_base_patch32_clip_224": 88_225_000,
    "vit_base_patch32_clip_256": 88_236_520,
    "vit_base_patch32_clip_384": 88_297_960,
    "vit_base_patch32_clip_448": 88_337_896,
    "vit_base_patch32_clip_quickgelu_224": 88_225_000,
    "vit_base_patch32_siglip_256": 95_321_320,
    "vit_base_patch32_siglip_gap_256": 88_234_216,
    "vit_base_patch8_224": 86_576_872,
    "vit_base_patch8_384": 87_744_232,
    "vit_base_r26_s32_224": 101_383_976,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_base_r50_s16_384": 98_950_952,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_giant_patch14_378": 1_013_277_416,
    "vit_giant_patch14_clip_224": 1_012_612_840,
    "vit_giant_patch14_dinov2": 1_138_016_232,
    "vit_giant_patch14_reg4_dinov2": 1_138_020_840,
    "vit_giant_patch16_gap_224": 1_012_777_576,
    "vit_giantopt_patch16_siglip_256": 1_164_705_256,
    "vit_giantopt_patch16_siglip_384": 1_165_196_776,
    "vit_giantopt_patch16_siglip_gap_256": 1_136_375_272,
    "vit_giantopt_patch16_siglip_gap_384": 1_136_866_792,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "vit_gigantic_patch14_378": 1_845_227_752,
    "vit_gigantic_patch14_clip_224": 1_844_442_344,
    "vit_gigantic_patch14_clip_378": 1_845_229_416,
    "vit_gigantic_patch14_clip_quickgelu_224": 1_844_442_344,
    "vit_huge_patch14_224": 632_045_800,
    "vit_huge_patch14_378": 632_651_240,
    "vit_huge_patch14_clip_224": 632_047_080,
    "vit_huge_patch14_clip_336": 632_456_680,
    "vit_huge_patch14_clip_378": 632_652_520,
    "vit_huge_patch14_clip_quickgelu_224": 632_047_080,
    "vit_huge_patch14_clip_quickgelu_378": 632_652_520,
    "vit_huge_patch14_gap_224": 632_043_240,
    "vit_huge_patch16_224": 632_199_400,
    "vit_huge_patch16_384": 632_685_800,
    "vit_huge_patch16_gap_448": 632_949_480,
    "vit_huge_patch32_224": 634_960_360,
    "vit_huge_patch32_384": 635_081_960,
    "vit_large_patch14_224": 304_203_752,
    "vit_large_patch14_378": 304_688_104,
    "vit_large_patch14_clip_224": 304_204_776,
    "vit_large_patch14_clip_336": 304_532_456,
    "vit_large_patch14_clip_quickgelu_224": 304_204_776,
    "vit_large_patch14_clip_quickgelu_336": 304_532_456,
    "vit_large_patch14_dinov2": 305_392_616,
    "vit_large_patch14_reg4_dinov2": 305_395_688,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch16_siglip_256": 316_981_224,
    "vit_large_patch16_siglip_384": 317_308_904,
    "vit_large_patch16_siglip_512": 317_767_656,
    "vit_large_patch16_siglip_gap_256": 304_386_024,
    "vit_large_patch16_siglip_gap_384": 304_713_704,
    "vit_large_patch16_siglip_gap_512": 305_172_456,
    "vit_large_patch32_224": 306_535_400,
    "vit_large_patch32_384": 306_632_680,
    "vit_large_r50_s32_224": 328_994_856,
    "vit_large_r50_s32_384": 329_092_136,
    "vit_medium_patch16_clip_224": 38_838_248,
    "vit_small_patch14_224": 22_004_584,
    "vit_small_patch14_378": 22_186_216,
    "vit_small_patch14_dinov2": 22_441_192,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_small_patch16_gap_224": 22_049_896,
    "vit_small_patch32_224": 22_878_952,
    "vit_small_patch32_384": 22_915_432,
    "vit_small_patch8_224": 22_055_272,
    "vit_small_patch8_384": 22_638_952,
    "vit_small_r26_s32_224": 36_431_912,
    "vit_small_r26_s32_384": 36_468_392,
    "vit_so400m_patch14_siglip_224": 428_833_704,
    "vit_so400m_patch14_siglip_378": 429_378_600,
    "vit_so400m_patch14_siglip_gap_224": 413_595_352,
    "vit_so400m_patch14_siglip_gap_378": 414_140_248,
    "vit_so400m_patch14_siglip_gap_448": 414_480_088,
    "vit_so400m_patch14_siglip_gap_896": 418_019_032,
    "vit_so400m_patch16_siglip_256": 429_041_064,
    "vit_so400m_patch16_siglip_384": 429_409_704,
    "vit_so400m_patch16_siglip_512": 429_925_800,
    "vit_so400m_patch16_siglip_gap_256": 413_802_712,
    "vit_so400m_patch16_siglip_gap_384": 414_171_352,
    "vit_so400m_patch16_siglip_gap_512": 414_687_448,
    "vit_tiny_patch14_224": 5_694_376,
    "vit_tiny_patch14_378": 5_785_192,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "vit_tiny_patch32_224": 6_131_560,
    "vit_tiny_patch32_384": 6_149_800,
    "vit_tiny_r_s16_p8_224": 6_337_704,
    "vit_tiny_r_s16_p8_384": 6_355_944,
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

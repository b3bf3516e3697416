"""Every variant: it can be created, and has as many parameters as its original."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from vitswin_jax import create_model, model_names
from vitswin_jax.analysis.variant_costs import variant_costs
from vitswin_jax.models.layers import pair
from vitswin_jax.models.registry import FAMILIES, family_of, model_kwargs, resolve_name
from vitswin_jax.models.variants import ALIASES, VARIANTS
from vitswin_jax.models.vit import ViT
from vitswin_jax.pretrained import default_preprocess
from vitswin_jax.train.optim import decay_mask

# Parameters with 1000 classes, by the originals' own definitions: vit_jax's, timm's and
# Microsoft's. Swin-T/C24 is Swin-T with 225 rows of biases for 184 heads, not 169 for 138.
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
    "vit_base_r26_s32_224": 101_383_976,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_base_r50_s16_384": 98_950_952,
    "vit_giant_patch14_224": 1_012_611_432,
    "vit_giant_patch14_clip_224": 1_012_612_840,
    "vit_giant_patch14_dinov2": 1_138_016_232,
    "vit_giant_patch14_reg4_dinov2": 1_138_020_840,
    "vit_giant_patch16_gap_224": 1_012_777_576,
    "vit_giantopt_patch16_siglip_256": 1_164_705_256,
    "vit_giantopt_patch16_siglip_384": 1_165_196_776,
    "vit_giantopt_patch16_siglip_gap_256": 1_136_375_272,
    "vit_giantopt_patch16_siglip_gap_384": 1_136_866_792,
    "vit_gigantic_patch14_224": 1_844_440_680,
    "vit_gigantic_patch14_clip_224": 1_844_442_344,
    "vit_gigantic_patch14_clip_378": 1_845_229_416,
    "vit_gigantic_patch14_clip_quickgelu_224": 1_844_442_344,
    "vit_huge_patch14_224": 632_045_800,
    "vit_huge_patch14_clip_224": 632_047_080,
    "vit_huge_patch14_clip_336": 632_456_680,
    "vit_huge_patch14_clip_378": 632_652_520,
    "vit_huge_patch14_clip_quickgelu_224": 632_047_080,
    "vit_huge_patch14_clip_quickgelu_378": 632_652_520,
    "vit_huge_patch14_gap_224": 632_043_240,
    "vit_huge_patch16_224": 632_199_400,
    "vit_huge_patch16_gap_448": 632_949_480,
    "vit_huge_patch32_224": 634_960_360,
    "vit_large_patch14_224": 304_203_752,
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
    "vit_small_patch14_dinov2": 22_441_192,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_small_patch16_gap_224": 22_049_896,
    "vit_small_patch32_224": 22_878_952,
    "vit_small_patch32_384": 22_915_432,
    "vit_small_patch8_224": 22_055_272,
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
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "vit_tiny_patch32_224": 6_131_560,
    "vit_tiny_r_s16_p8_224": 6_337_704,
    "vit_tiny_r_s16_p8_384": 6_355_944,
}


def count(name, **fields):
    model = create_model(name, **fields, scan=True)
    images = jax.ShapeDtypeStruct((1, *pair(model.img_size), 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_variant_has_the_published_number_of_parameters(name):
    assert count(name) == PUBLISHED[name] == variant_costs()[name].parameters


MOE = set(model_names("swin_moe_*"))  # whose counts are published nowhere


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - PUBLISHED.keys() - MOE))
def test_what_no_table_lists_differs_from_what_one_does_in_its_positions(name):
    """A ViT at another image size: the count differs by one position for each patch."""
    base = re.sub(r"\d+$", "224", name)
    model, published = create_model(name), create_model(base)
    assert isinstance(model, ViT)
    more = model.grid[0] * model.grid[1] - published.grid[0] * published.grid[1]
    expected = PUBLISHED[base] + more * model.embed_dim
    assert count(name) == expected == variant_costs()[name].parameters


@pytest.mark.parametrize("name", sorted(MOE))
def test_experts_are_what_a_mixture_has_more_than_the_dense_model(name):
    """Nine blocks of the third stage and one of the last: E MLPs and a router in place of one."""
    model = create_model(name)
    more = 0
    for stage, blocks in ((2, 9), (3, 1)):
        c = model.embed_dim * 2**stage
        mlp = c * 4 * c + 4 * c + 4 * c * c  # no bias behind the second layer
        more += blocks * ((model.num_experts - 1) * mlp + c * model.num_experts)
    assert count(name) == count(name, moe_stages=()) + more == variant_costs()[name].parameters


def test_every_family_has_variants_and_each_is_of_its_family():
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)
    for name in model_names():
        assert family_of(create_model(name)) == VARIANTS[name][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_trained_and_fed(family):
    """Each parameter has a rule of weight decay, and each model a preprocessing by default."""
    name = next(name for name, (its, _) in VARIANTS.items() if its == family)
    model = create_model(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *pair(model.img_size), 3)))
    decayed = flatten_dict(decay_mask(shapes["params"]), sep="/")
    assert {path.rpartition("/")[2] for path, yes in decayed.items() if yes} <= {
        "kernel",
        "fc1_kernel",
        "fc2_kernel",
    }
    assert not any(yes for path, yes in decayed.items() if "cpb_mlp" in path)
    assert default_preprocess(name).img_size == pair(model.img_size)


def test_names_are_unique_and_aliases_lead_to_variants():
    assert not VARIANTS.keys() & ALIASES.keys()
    assert set(ALIASES.values()) <= VARIANTS.keys()


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("B/16", "vit_base_patch16_224"),
        ("ViT-B_16", "vit_base_patch16_224"),
        ("L/14-378", "vit_large_patch14_378"),
        ("g/14", "vit_giant_patch14_224"),
        ("G/14", "vit_gigantic_patch14_224"),
        ("R+Ti/16", "vit_tiny_r_s16_p8_224"),
        ("R_Ti_16", "vit_tiny_r_s16_p8_224"),
        ("R26+S_32", "vit_small_r26_s32_224"),
        ("R26+ViT-B/32", "vit_base_r26_s32_224"),
        ("R50+ViT-B_16", "vit_base_r50_s16_224"),
        ("R50+ViT-B_16-384", "vit_base_r50_s16_384"),
        ("R50_L_32", "vit_large_r50_s32_224"),
        ("vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_378"),
        ("swinv2_tiny_patch4_window8_256", "swinv2_tiny_window8_256"),
        (
            "swin_moe_small_patch4_window12_192_64expert_64gpu",
            "swin_moe_small_patch4_window12_192_64expert",
        ),
    ],
)
def test_the_originals_names_are_known(name, variant):
    assert resolve_name(name) == (variant, {})


@pytest.mark.parametrize(
    ("name", "variant", "classes"),
    [
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224", 21843),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224", 1000),
        ("vit_base_patch16_224.orig_in21k", "vit_base_patch16_224", 0),
        ("vit_base_patch16_224.mae", "vit_base_patch16_224", 0),
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2", 0),
        ("vit_base_patch16_siglip_224.v2_webli", "vit_base_patch16_siglip_224", 0),
        ("vit_base_patch16_clip_224.openai_ft_in12k", "vit_base_patch16_clip_224", 11821),
        ("swin_base_patch4_window7_224.ms_in22k", "swin_base_patch4_window7_224", 21841),
        ("swin_base_patch4_window7_224_22k", "swin_base_patch4_window7_224", 21841),
        (
            "swinv2_base_patch4_window12to16_192to256_22kto1k_ft",
            "swinv2_base_window12to16_192to256",
            1000,
        ),
        ("swinv2_large_patch4_window12_192_22k", "swinv2_large_window12_192", 21841),
    ],
)
def test_a_name_may_tell_the_head_of_its_weights(name, variant, classes):
    assert resolve_name(name)[0] == variant
    assert model_kwargs(name)["num_classes"] == classes


def test_windows_may_differ_by_stage(key):
    """Swin-S3: the third stage's 14 x 14 map is one window, and so is the last's."""
    model = create_model("swin_s3_tiny_224")
    assert model.window_sizes == ((7, 7), (7, 7), (14, 14), (7, 7))
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 224, 224, 3)))["params"]
    tables = [
        params[f"stage_{i}"]["block_0"]["attn"]["relative_position_bias_table"].shape[0]
        for i in range(4)
    ]
    assert tables == [13**2, 13**2, 27**2, 13**2]
    assert create_model("swin_s3_tiny_224", window_size=[[7, 7]] * 4).window_sizes == ((7, 7),) * 4

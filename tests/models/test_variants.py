"""Every variant: its name, its family, and what goes by them."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from kinds import mostly_long

from vitswin_jax import create_model, model_names
from vitswin_jax.models.aliases import ALIASES
from vitswin_jax.models.registry import FAMILIES, family_of, model_kwargs, resolve_name
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.train.optim.optimizers import decay_mask
from vitswin_jax.weights.sources.preprocess import default_preprocess


def test_every_family_has_variants_and_each_is_of_its_family():
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)
    for name in model_names():
        assert family_of(create_model(name)) == VARIANTS[name][0]


@pytest.mark.parametrize("family", mostly_long(FAMILIES, ["swin", "vit"]))
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
    assert default_preprocess(model, name).img_size == pair(model.img_size)


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


def test_so400m_at_384_leaves_out_the_pixels_beyond_its_27_patches():
    """timm's convolution does so; the 378 pixels of the same weights fill the same patches."""
    for word in ("siglip", "siglip_gap"):
        whole, cut = (create_model(f"vit_so400m_patch14_{word}_{size}") for size in (384, 378))
        assert whole.img_size == 384 and whole.grid == cut.grid == (27, 27)

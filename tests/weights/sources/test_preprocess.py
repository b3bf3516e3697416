"""How images are given to models of timm's layout: as timm's own pretrained configurations say."""

import jax
import jax.numpy as jnp
import pytest
from kinds import mostly_long

from vitswin_jax import load_metadata, make_preprocess, save_pretrained
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.registry import create_model, model_kwargs
from vitswin_jax.models.tags import tags_of
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.weights.sources.detect import SOURCES
from vitswin_jax.weights.sources.preprocess import (
    STATISTICS,
    default_preprocess,
    images_of,
    named_images,
    timm_preprocess,
)

HALF, IMAGENET, CLIP, UNIT = 0.5, 0.485, 0.48145466, 0.0
CONFIGURATIONS = {  # timm 1.0's pretrained_cfg: (first of mean, first of std, crop_pct)
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": (HALF, 0.5, 0.9),
    "vit_base_patch16_384.augreg_in21k_ft_in1k": (HALF, 0.5, 1.0),
    "vit_base_patch32_224.sam_in1k": (HALF, 0.5, 0.9),
    "vit_huge_patch14_224.orig_in21k": (HALF, 0.5, 0.9),
    "vit_base_r50_s16_384.orig_in21k_ft_in1k": (HALF, 0.5, 1.0),
    "deit_tiny_patch16_224.fb_in1k": (IMAGENET, 0.229, 0.9),
    "deit_base_distilled_patch16_384.fb_in1k": (IMAGENET, 0.229, 1.0),
    "deit3_medium_patch16_224.fb_in1k": (IMAGENET, 0.229, 0.9),
    "deit3_huge_patch14_224.fb_in1k": (IMAGENET, 0.229, 0.9),
    "deit3_large_patch16_384.fb_in1k": (IMAGENET, 0.229, 1.0),
    "vit_small_patch14_dinov2.lvd142m": (IMAGENET, 0.229, 1.0),
    "vit_giant_patch14_reg4_dinov2.lvd142m": (IMAGENET, 0.229, 1.0),
    "vit_large_patch16_224.mae": (IMAGENET, 0.229, 0.9),
    "vit_small_patch8_224.dino": (IMAGENET, 0.229, 0.9),
    "vit_huge_patch14_gap_224.in1k_ijepa": (IMAGENET, 0.229, 0.9),
    "vit_base_patch16_siglip_224.webli": (HALF, 0.5, 0.9),
    "vit_base_patch16_siglip_gap_384.webli": (HALF, 0.5, 0.9),
    "vit_so400m_patch14_siglip_378.webli": (HALF, 0.5, 0.9),
    "vit_base_patch16_clip_224.laion2b": (CLIP, 0.26862954, 1.0),
    "vit_large_patch14_clip_quickgelu_336.openai": (CLIP, 0.26862954, 1.0),
    "vit_so400m_patch14_reg1_tipsv2.webli": (UNIT, 1.0, 1.0),
}

OTHERS = {  # the same, and (interpolation, crop_mode)
    "vit_base_patch16_224_miil.in21k": (UNIT, 1.0, 0.875, "bilinear", "center"),
    "vit_base_patch16_224.bamboo": (CLIP, 0.26862954, 1.0, "bicubic", "center"),
    "vit_large_patch14_clip_336.laion2b_ft_in1k": (HALF, 0.5, 1.0, "bicubic", "squash"),
    "vit_large_patch14_clip_336.openai": (CLIP, 0.26862954, 1.0, "bicubic", "center"),
    # timm's squash with crop_pct=0.95 resizes to 384 / 0.95 pixels and crops.
    "vit_medium_patch16_gap_384.sw_in12k_ft_in1k": (HALF, 0.5, 0.95, "bicubic", "squash_crop"),
    "vit_so400m_patch14_siglip_378.webli_ft_in1k": (HALF, 0.5, 1.0, "bicubic", "squash"),
    "vit_so400m_patch14_siglip_384.webli": (HALF, 0.5, 0.9, "bicubic", "center"),
    "beit_base_patch16_224.in22k_ft_in22k": (HALF, 0.5, 0.9, "bicubic", "center"),
    "beitv2_large_patch16_224.in1k_ft_in1k": (IMAGENET, 0.229, 0.95, "bicubic", "center"),
    "swin_base_patch4_window12_384.ms_in22k": (IMAGENET, 0.229, 1.0, "bicubic", "center"),
    "swinv2_tiny_window8_256.ms_in1k": (IMAGENET, 0.229, 0.9, "bicubic", "center"),
    # Without a tag: that of the weights that timm loads by that name.
    "vit_base_patch32_clip_224": (CLIP, 0.26862954, 0.9, "bicubic", "center"),
    "vit_large_patch14_clip_336": (HALF, 0.5, 1.0, "bicubic", "squash"),
    "deit_tiny_patch16_224": (IMAGENET, 0.229, 0.9, "bicubic", "center"),
    # timm has no such names: Microsoft's own images, and those of the kind of model.
    "swin_mlp_base_patch4_window7_224": (IMAGENET, 0.229, 0.875, "bicubic", "center"),
    "vit_tiny_patch32_384": (HALF, 0.5, 1.0, "bicubic", "center"),
}


@pytest.mark.parametrize(("name", "want"), CONFIGURATIONS.items())
def test_names_give_timms_configurations(name, want):
    preprocess = default_preprocess(create_model(name), name)
    assert (preprocess.mean[0], preprocess.std[0], preprocess.crop_fraction) == want
    assert (preprocess.interpolation, preprocess.crop_mode) == ("bicubic", "center")


@pytest.mark.parametrize(("name", "want"), OTHERS.items())
def test_so_do_names_of_weights_that_are_unlike_others_of_their_kind(name, want):
    found = default_preprocess(create_model(name), name)
    got = (found.mean[0], found.std[0], found.crop_fraction, found.interpolation, found.crop_mode)
    assert got == want


def test_every_row_of_the_table_is_a_preprocessing():
    assert {row.statistics for name in VARIANTS for row in tags_of(name).values()} == set(
        STATISTICS
    )
    for variant in VARIANTS:
        for tag in tags_of(variant):
            Preprocess(img_size=(224, 224), **named_images(f"{variant}.{tag}"))


def test_a_tag_goes_before_the_default_of_any_source():
    google = next(source for source in SOURCES if source.format == "google")
    fields, images = model_kwargs("vit_base_patch16_224"), google.preprocess
    assert images_of(google, fields, None) == images_of(google, fields, "B/16") == images
    assert images_of(google, fields, "vit_base_patch16_224.mae")["mean"][0] == IMAGENET


def test_a_decoder_shows_how_images_were_given():
    assert timm_preprocess(model_kwargs("vit"), "vit.mae")["mean"][0] == IMAGENET


UNSHOWN = ("deit_tiny_patch16_224.", ".mae", ".dino", ".in1k_ijepa")


@pytest.mark.parametrize(
    ("name", "want"),
    [(n, w) for n, w in CONFIGURATIONS.items() if not any(word in n for word in UNSHOWN)],
)
def test_most_files_show_it(name, want):
    found = timm_preprocess(model_kwargs(name))
    assert (found["mean"][0], found["std"][0]) == want[:2]


def test_what_the_file_shows_wins_over_the_name():
    fields = model_kwargs("vit_base_patch16_clip_224")
    assert timm_preprocess(fields, "deit_base_patch16_224")["mean"][0] == CLIP


TINY = {"img_size": 28, "embed_dim": 192, "depth": 1, "num_heads": 3, "num_classes": 2}


FILES = [
    ({"patch_size": 4, "dist_token": True}, None, IMAGENET),
    (
        {"patch_size": 4, "pre_norm": True, "patch_bias": False},
        "vit_base_patch16_clip_224",
        CLIP,
    ),
    ({"patch_size": 4, "init_values": 1e-6, "no_embed_class": True}, None, IMAGENET),
    ({"patch_size": 14, "init_values": 1e-5}, None, IMAGENET),
    ({"patch_size": 4}, None, HALF),
    ({"patch_size": 4}, "deit_small_patch16_224", IMAGENET),
    ({"patch_size": 4}, "vit_base_patch16_224.mae", IMAGENET),
]


@pytest.mark.parametrize(("fields", "name", "mean"), mostly_long(FILES, FILES[3:4]))
def test_of_a_file(tmp_path, key, fields, name, mean):
    model = create_model("vit", **TINY | fields)
    variables = jax.jit(model.init)(key, jnp.zeros((1, 28, 28, 3)))
    path = save_pretrained(tmp_path / "a.safetensors", model, variables, format="timm")
    assert load_metadata(path, name).preprocess.mean[0] == mean
    assert make_preprocess(path, name).args[0].mean[0] == mean

"""Names of models: their meanings, refusals and suggestions."""

import pytest
import timm_models

from vitswin_jax import UserError, create_model, model_names
from vitswin_jax.models.aliases import ALIASES, RENAMED
from vitswin_jax.models.names import nearest_name, other_library, parse_name
from vitswin_jax.models.registry import FAMILIES, model_kwargs
from vitswin_jax.models.tags import tags_of
from vitswin_jax.models.variants import VARIANTS


def refusal(name):
    with pytest.raises(UserError) as error:
        create_model(name)
    line = str(error.value)
    assert "\n" not in line and len(line) <= 400
    return line


@pytest.mark.parametrize("name", [*VARIANTS, *FAMILIES])
def test_a_variants_name_means_the_variant_and_no_weights(name):
    assert parse_name(name) == (name, None, None)


@pytest.mark.parametrize(
    ("name", "variant", "tag", "classes"),
    [  # timm's own tables: `_deprecations` of each file, with the right tag where timm's is wrong
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224", "augreg_in21k", 21843),
        ("vit_large_patch32_224_in21k", "vit_large_patch32_224", "orig_in21k", 0),
        ("vit_huge_patch14_224_in21k", "vit_huge_patch14_224", "orig_in21k", 0),
        ("vit_base_patch32_224_sam", "vit_base_patch32_224", "sam_in1k", 1000),
        ("vit_small_patch8_224_dino", "vit_small_patch8_224", "dino", 0),
        ("vit_base_patch16_224_miil_in21k", "vit_base_patch16_224_miil", "in21k", 11221),
        ("vit_huge_patch14_224_clip_laion2b", "vit_huge_patch14_clip_224", "laion2b", 1024),
        ("deit3_base_patch16_384_in21ft1k", "deit3_base_patch16_384", "fb_in22k_ft_in1k", 1000),
        ("vit_small_r26_s32_224_in21k", "vit_small_r26_s32_224", "augreg_in21k", 21843),
        ("vit_base_resnet50_384", "vit_base_r50_s16_384", "orig_in21k_ft_in1k", 1000),
        ("swin_large_patch4_window7_224_in22k", "swin_large_patch4_window7_224", "ms_in22k", 21841),
        ("swinv2_base_window12_192_22k", "swinv2_base_window12_192", "ms_in22k", 21841),
        (
            "swinv2_large_window12to24_192to384_22kft1k",
            "swinv2_large_window12to24_192to384",
            "ms_in22k_ft_in1k",
            1000,
        ),
        # Microsoft's: their images are not timm's, so that no tag goes with them.
        ("swin_base_patch4_window7_224_22kto1k", "swin_base_patch4_window7_224", None, 1000),
        ("swinv2_base_patch4_window12_192_22k", "swinv2_base_window12_192", None, 21841),
        (
            "swin_moe_small_patch4_window12_192_8expert_32gpu_22k",
            "swin_moe_small_patch4_window12_192_8expert",
            None,
            21841,
        ),
        # Heads of CLIP's are projections.
        ("vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_224", "openai", 512),
        ("vit_base_patch16_224.bamboo", "vit_base_patch16_224", "bamboo", 115217),
        ("B/16-384.augreg_in1k", "vit_base_patch16_384", "augreg_in1k", 1000),
    ],
)
def test_a_name_may_mean_weights(name, variant, tag, classes):
    assert parse_name(name) == (variant, tag, classes)
    assert model_kwargs(name)["num_classes"] == classes


def test_earlier_names_are_of_weights_that_timm_has():
    assert not RENAMED.keys() & (VARIANTS.keys() | ALIASES.keys())
    for name, meaning in RENAMED.items():
        variant, _, tag = meaning.partition(".")
        assert parse_name(name)[:2] == (variant, tag)


def test_an_unknown_tag_is_refused_with_those_that_there_are():
    line = refusal("deit_tiny_patch16_224.fb_in22k")
    assert "deit_tiny_patch16_224 has no tag 'fb_in22k' in timm; its tags are fb_in1k" in line
    assert "did you mean 'mae'" in refusal("vit_base_patch16_224.mea")
    assert "did you mean" not in refusal("vit_base_patch16_224.augreg3_in21k")
    assert "has no tags" in refusal("swin_mlp_base_patch4_window7_224.ms_in1k")


@pytest.mark.parametrize("name", timm_models.OTHERS)
def test_timms_models_that_no_family_computes_are_refused_as_such(name):
    line = refusal(name)
    assert f"{name!r} is a model of timm, and vitswin_jax has no such model" in line
    assert "did you mean" not in line


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("vit_base_patch16_xp_224.naver_in1k", "a model of timm"),
        ("naflexvit_base_patch16_gap", "a model of timm"),
        ("vit_base_patch16_sapiens2", "a model of timm"),
        ("vit_base_patch16_18x2_224", "a model of timm"),
        ("samvit_base_patch16", "a model of timm"),
        ("maxvit_t", "a model of torchvision"),
        ("dinov3_vit", "a model_type of transformers"),
        ("vit_mae", "a model_type of transformers"),
        ("ViT-B-16", "a model of open_clip"),
    ],
)
def test_names_of_other_libraries_models_are_refused_as_such(name, library):
    line = refusal(name)
    assert f"is {library}, and vitswin_jax has no such model" in line
    assert "did you mean" not in line


def test_no_name_of_ours_is_another_librarys():
    assert not [name for name in (*model_names(), *FAMILIES) if other_library(name)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vit_base_patch16_244", "vit_base_patch16_224"),
        ("vit_bsae_patch16_224", "vit_base_patch16_224"),
        ("vit_base_pacth16_224", "vit_base_patch16_224"),
        ("vit-base-patch16-224", "vit_base_patch16_224"),
        ("vitbase_patch16_224", "vit_base_patch16_224"),
        ("swin_tny_patch4_window7_224", "swin_tiny_patch4_window7_224"),
        ("swin_tinny_patch4_windw7_224", "swin_tiny_patch4_window7_224"),
        ("swinv2_tiny_window8_265", "swinv2_tiny_window8_256"),
        ("deti_small_patch16_224", "deit_small_patch16_224"),
    ],
)
def test_a_slip_of_the_pen_gets_the_right_name(name, meant):
    assert refusal(name).endswith(f"did you mean {meant!r}?")


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_rope_mixed_ape_256",  # words that other models' names have
        "vit_large_patch14_384",
        "vit_xlarge_patch16_224",
        "swinv2_base_window12_196",
        "swin_tiny_patch4_window16_256",
        "vit_base_patch16_dinov2",
        "vit_base_patch14_dinov4",  # words with another number
        "vit_base_patch17_224",
        "vit_base_patch16_reg5_gap_256",
        "vit_xxlarge_patch16_224",
        "vit_base_patch16_novel_224",
        "X/16",
        "resnet50",
        "a" * 300,
        "...",
        "",
    ],
)
def test_what_may_be_another_model_gets_no_suggestion(name):
    assert "did you mean" not in refusal(name)


def test_published_names_are_held_to_the_same():
    known = ["deit/deit_tiny_patch16_224-a1311bcf", "deit/deit_small_patch16_224-cd65a155"]
    assert known[0] in nearest_name("diet/deit_tiny_patch16_224-a1311bcf", known)
    assert nearest_name("deit/deit_base_patch16_224-a1311bcf", known) == ""


def test_every_tag_is_of_a_variant():
    tagged = [variant for variant in VARIANTS if tags_of(variant)]
    assert set(tagged) == timm_models.MODELS.keys()
    assert sum(len(tags_of(variant)) for variant in tagged) == 508
    assert next(iter(tags_of("vit_base_patch16_224"))) == "augreg2_in21k_ft_in1k"


def test_a_family_that_a_user_adds_is_created_by_its_name(monkeypatch):
    """Even by the name of another library's model, as in docs/add_a_model.md."""
    assert "poolformer" in refusal("poolformer")
    monkeypatch.setitem(FAMILIES, "poolformer", FAMILIES["vit"])
    assert create_model("poolformer", depth=2, num_classes=3).depth == 2

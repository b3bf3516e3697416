"""A model is one function of images of any size, or names what fixes its size."""

import pytest

from vitswin_jax.models.open_size import at_size, fixed_by, step_of
from vitswin_jax.models.registry import create_model

VIT = {"img_size": (8, 16), "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 1}


def test_a_vit_is_another_model_at_each_size():
    model = create_model("vit", **VIT)
    assert fixed_by(model) is None
    assert step_of(model) == (4, 4)
    assert at_size(model, (12, 20)).grid == (3, 5)
    cropped = create_model("vit", **{**VIT, "crop_to_patches": True})
    assert step_of(cropped) == (1, 1)
    assert at_size(cropped, (13, 23)).grid == (3, 5)


@pytest.mark.parametrize("name", ["swin", "swinv2", "swin_mlp", "swinv2_cr"])
def test_a_swin_is_the_same_at_all(name):
    model = create_model(name, img_size=56)
    assert fixed_by(model) is None
    assert step_of(model) == (1, 1)
    assert at_size(model, (33, 71)) is model


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("vit", {"pos_embed": "relative", "pos_embed_at": "shared"}, "pos_embed='relative'"),
        ("vit", {"pos_embed": "learned2d"}, "no source resizes it"),
        ("swin", {"ape": True}, "ape=True"),
        ("swin_moe", {}, "experts"),
    ],
)
def test_tables_for_one_size_are_the_reason(name, fields, reason):
    assert reason in fixed_by(create_model(name, **fields))

"""Which parts each family has, and that all of them are drawn."""

import numpy as np
import pytest
from drawn import draw
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.explain.pages import PARTS, Explainer, available_parts
from vitswin_jax.models.registry import create_model

VIT = {"img_size": 16, "embed_dim": 8, "num_heads": 2, "depth": 1, "patch_size": 4}
SWIN = {"img_size": 12, "patch_size": 2, "embed_dim": 8, "depths": (1, 2), "window_size": 4}
SWIN |= {"num_heads": (1, 2)}
V2 = {"pretrained_window_sizes": (0, 0)}
OF_VIT = {"rollout", "gradcam", "heads", "distance", "positions", "filters"}
OF_SWIN = {"rollout", "gradcam", "windows", "heads", "distance", "biases", "filters"}

CASES = {
    "headless, relative": (
        "vit",
        VIT | {"num_classes": 0, "pos_embed": "relative", "pos_embed_at": "every"},
        OF_VIT - {"gradcam", "positions"} | {"biases"},
    ),
    "pooled by attention, bfloat16": (
        "vit",
        VIT | {"class_token": False, "global_pool": "map", "dtype": "bfloat16"},
        OF_VIT,
    ),
    "hybrid": (
        "vit",
        VIT | {"img_size": 32, "resnet_layers": (1, 1), "patch_size": 1},
        OF_VIT - {"filters"},
    ),
    "odd, ape": ("swin", SWIN | {"img_size": 13, "ape": True}, OF_SWIN | {"positions"}),
    "experts": ("swin_moe", SWIN | V2 | {"moe_stages": (1,), "num_experts": 2}, OF_SWIN),
}


@pytest.mark.parametrize("case", mostly_long(CASES, ["hybrid"]))
def test_every_part_a_model_has_is_drawn(case):
    name, fields, parts = CASES[case]
    model = create_model(name, **{"num_classes": 3} | fields)
    params = draw(model)["params"]
    assert set(available_parts(model, params)) == parts
    explainer = Explainer(model, {"params": params})
    size = (model.img_size, model.img_size, 3)
    pixels = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    image = pixels.astype(np.float32) / 127.5 - 1
    label = 1 if model.num_classes else None
    drawn = [*explainer.of_image(image, pixels, label=label), *explainer.of_model()]
    assert {picture.part for picture in drawn} == parts
    assert len({picture.name for picture in drawn}) == len(drawn)
    assert all(picture.data.startswith(b"\x89PNG") for picture in drawn)


def test_only_what_is_asked_for_in_the_order_of_the_page():
    model = create_model("vit", num_classes=3, **VIT)
    variables = draw(model)
    assert Explainer(model, variables, parts=("filters", "rollout")).parts == ("rollout", "filters")
    with pytest.raises(UserError, match="windows, biases: nothing to show of this ViT"):
        Explainer(model, variables, parts=("rollout", "windows", "biases"))
    assert set(PARTS) == OF_VIT | OF_SWIN

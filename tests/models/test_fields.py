"""Fields that do not change the function of a model in inference: they give the same logits."""

import dataclasses

import jax
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax import UserError, create_model
from vitswin_jax.models.fields import EXECUTION, LAYOUT, TRAINING, plain
from vitswin_jax.models.registry import FAMILIES
from vitswin_jax.nn.scan import stack_blocks

SWIN = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,),
        "window_size": 2}  # fmt: skip
SIZES = {
    "vit": {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
    "swin": SWIN,
    "swinv2": SWIN | {"pretrained_window_sizes": (0,)},
    "swinv2_cr": SWIN | {"extra_norm_stage": True},
    "swin_mlp": SWIN,
    "swin_moe": SWIN | {"pretrained_window_sizes": (0,), "moe_stages": (0,), "num_experts": 2},
}
OTHER = {"remat": "full", "scan": True}
CASES = [
    (family, name)
    for family, kind in FAMILIES.items()
    for name in (*EXECUTION, *LAYOUT, *TRAINING)
    if name in {field.name for field in dataclasses.fields(kind)}
    and (family, name) != ("swin_mlp", "attn_impl")  # has no attention, and refuses another
    and (family, name) != ("swin_mlp", "attn_drop_rate")
]


def other_value(family, name):
    if name == "attn_impl":
        return "auto" if family == "vit" else "pairs"
    return OTHER.get(name, 0.3)


SHORT = [("vit", "scan"), ("vit", "remat"), ("swin", "attn_impl"), ("swin", "drop_path_rate")]


@pytest.mark.parametrize(("family", "name"), mostly_long(CASES, SHORT))
def test_another_value_gives_the_same_logits(family, name, random_params, apply):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = plain(create_model(family, num_classes=3, **SIZES[family]))
    params = random_params(model, images)
    changed = model.clone(**{name: other_value(family, name)})
    changed.check()
    want = apply(model, params, images)
    got = apply(changed, stack_blocks(params) if name in LAYOUT else params, images)
    assert np.ptp(want) > 0.01
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("family", SIZES)
def test_a_width_that_no_gate_halves_is_one_line(family):
    ratio = 17 / 8
    create_model(family, **SIZES[family], mlp_ratio=ratio)
    with pytest.raises(UserError, match=r"mlp_ratio makes a width of 17, and act='swiglu' needs"):
        create_model(family, **SIZES[family], mlp_ratio=ratio, act="swiglu")


def test_every_field_of_the_tables_is_a_models():
    assert {name for _, name in CASES} == {*EXECUTION, *LAYOUT, *TRAINING}


def test_plain_takes_back_what_a_run_chose_and_keeps_the_rest():
    model = create_model("vit", **SIZES["vit"], scan=True, remat="full", attn_impl="auto")
    assert plain(model) == create_model("vit", **SIZES["vit"], attn_impl="xla")
    assert plain(model, num_classes=7, unheard_of=1).num_classes == 7

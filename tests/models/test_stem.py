"""Convolutions before the patches: by hand in float64, and a plain model on their map."""

import jax
import numpy as np
import pytest
from scipy.signal import correlate
from scipy.stats import norm

from vitswin_jax import create_model, load_pretrained, save_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.explain.learned import patch_filters
from vitswin_jax.models.geometry import geometry_of
from vitswin_jax.nn.layers import ConvStem

SWIN = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,),
        "window_size": 2}  # fmt: skip
SIZES = {
    "vit": {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
    "swin": SWIN,
    "swinv2": SWIN | {"pretrained_window_sizes": (0,)},
    "swinv2_cr": SWIN,
    "swin_mlp": SWIN,
    "swin_moe": SWIN | {"pretrained_window_sizes": (0,), "moe_stages": (0,), "num_experts": 2},
}
STEM = (3, 5, 5)
"""The first width is that of the images' channels, which nothing may take it for."""


def small(family, **fields):
    return create_model(family, **SIZES[family] | {"num_classes": 3, **fields})


def by_hand(params, images):
    """Returns the last map of a stem in float64."""
    x, params = np.asarray(images, np.float64), jax.tree.map(np.asarray, params)
    for i in range(len(params) // 2):
        kernel = np.asarray(params[f"conv_{i}"]["kernel"], np.float64)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = np.stack(
            [
                correlate(padded, kernel[None, ..., c], mode="valid")[..., 0]
                for c in range(kernel.shape[-1])
            ],
            axis=-1,
        )
        step = 1 + (i > 0 and kernel.shape[3] > kernel.shape[2])
        x = x[:, ::step, ::step]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * params[f"norm_{i}"]["scale"] + params[f"norm_{i}"]["bias"]
        x = x * norm.cdf(x)
    return x


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in ("vit", "swin")))
        for name in SIZES
    ],
)
def test_a_model_with_a_stem_is_the_plain_model_on_the_stems_map(family, random_params, apply):
    patch = SIZES[family]["patch_size"]
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = small(family, stem=STEM)
    params = random_params(model, images)
    rest = params["patch_embed"]
    stem = rest["stem"]
    inner = {name: value for name, value in rest.items() if name != "stem"}
    plain = small(family, in_chans=STEM[-1], img_size=4, patch_size=patch // 2)
    got = apply(model, params, images)
    want = apply(plain, params | {"patch_embed": inner}, by_hand(stem, images).astype(np.float32))
    assert np.ptp(want) > 0.01
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert geometry_of(model).grid == (8 // patch, 8 // patch)
    assert patch_filters(model, params) is None


def test_a_convolution_halves_the_map_if_it_is_wider_than_the_one_before():
    sides = {(): 16, (2,): 16, (2, 3): 8, (2, 2): 16, (2, 3, 3): 8, (3, 2, 4): 8, (2, 3, 4): 4}
    for widths, side in sides.items():
        images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
        out, _ = jax.eval_shape(ConvStem(widths).init_with_output, jax.random.key(0), images)
        assert out.shape == (1, side, side, widths[-1] if widths else 3)
        assert 16 // ConvStem.stride_of(widths) == side


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ((4, 0), r"stem=\(4, 0\) must have widths of at least 1"),
        ((4, 5, 6, 7), r"halves the map 3 time\(s\), so patch_size=.* must be a multiple of 8"),
    ],
)
def test_a_stem_that_does_not_fit_is_one_line(family, stem, message):
    with pytest.raises(UserError, match=message) as error:
        small(family, stem=stem)
    assert "\n" not in str(error.value)


def test_a_stem_and_a_resnet_exclude_each_other():
    with pytest.raises(UserError, match=r"stem=\(4,\) needs resnet_layers=None"):
        small("vit", stem=(4,), resnet_layers=(), img_size=32)


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_files_keep_a_stem_and_only_its_first_kernel_reads_other_channels(
    family, tmp_path, random_params
):
    model = small(family, stem=STEM)
    params = random_params(model, np.zeros((1, 8, 8, 3), np.float32))
    path = save_pretrained(tmp_path / "own", model, {"params": params})
    again, variables = load_pretrained(path)
    assert again.stem == STEM
    jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
    _, grey = load_pretrained(path, in_chans=1)
    before, after = params["patch_embed"], grey["params"]["patch_embed"]
    summed = np.asarray(before["stem"]["conv_0"]["kernel"]).sum(2, keepdims=True)
    np.testing.assert_allclose(after["stem"]["conv_0"]["kernel"], summed, rtol=1e-6)
    np.testing.assert_array_equal(after["proj"]["kernel"], before["proj"]["kernel"])
    for other in ("timm", "huggingface", "microsoft" if family == "swin" else "google"):
        with pytest.raises(
            UserError, match=rf"{other} cannot hold {family} with .*stem=\(3, 5, 5\)"
        ):
            save_pretrained(tmp_path / other, model, {"params": params}, format=other)

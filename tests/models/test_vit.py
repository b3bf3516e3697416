"""ViT: shapes and truths of the architecture; the originals' numbers are in tests/convert."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import apply
from kinds import mostly_long
from safetensors.numpy import save_file

from vitswin_jax import create_model, load_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.posemb import sincos_2d
from vitswin_jax.nn.scan import stack_blocks

TINY = {
    "img_size": (8, 12),
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
}


@pytest.fixture
def create(random_params):
    """Creates a tiny ViT, its parameters and two images."""

    def create(**fields):
        model = create_model("vit", **TINY | fields)
        images = jax.random.normal(jax.random.key(0), (2, *pair(model.img_size), 3))
        return model, random_params(model, images), images

    return create


def test_a_fresh_model_gives_every_class_the_same_logit(key):
    model = create_model("vit", **TINY)
    images = jax.random.normal(key, (2, 8, 12, 3))
    logits, _ = jax.jit(model.init_with_output)(key, images)
    np.testing.assert_array_equal(logits, jnp.zeros((2, 5)))


def test_without_positions_the_order_of_patches_is_lost_and_with_them_not(apply, create):
    """Permuting patches permutes nothing the class token sees (ViT, section 3.1)."""
    for pos_embed, same in (("none", True), ("learned", False), ("sincos2d", False)):
        model, params, images = create(pos_embed=pos_embed)
        swapped = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
        close = np.allclose(*(apply(model, params, x) for x in (images, swapped)), atol=1e-5)
        assert close == same, pos_embed


def test_a_patch_reaches_the_map_only_through_its_own_place(apply, create):
    """Depth 0 of mixing: with attention's output projection zero, tokens stay apart."""
    model, params, images = create(depth=1)
    params["block_0"]["attn"]["proj"] = jax.tree.map(
        jnp.zeros_like, params["block_0"]["attn"]["proj"]
    )
    maps = functools.partial(apply, model, params, method="feature_maps")
    changed = images.at[:, 4:8, 8:12].add(1.0)  # the patch in row 1, column 2
    moved = jnp.abs(maps(images)[0] - maps(changed)[0]).max((0, -1)) > 1e-6
    want = np.zeros((2, 3), bool)
    want[1, 2] = True
    np.testing.assert_array_equal(moved, want)


FIELDS = [
    ({}, 16),
    ({"global_pool": "avg", "fc_norm": True, "class_token": False}, 16),
    ({"global_pool": "token_avg"}, 32),
    ({"dist_token": True}, 16),
    ({"pre_logits": 7}, 7),
    ({"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1}, 16),
    ({"rope_type": "axial", "rope_ref_grid": (4, 4), "act": "geglu", "norm_at": "both"}, 16),
    ({"global_pool": "map", "pool_heads": 4, "pool_mlp_ratio": 1.0, "norm_at": "after"}, 16),
    ({"global_pool": "avg"}, 16),
    ({"global_pool": "map", "class_token": False}, 16),
    ({"patch_norm": True, "pre_norm": True, "patch_bias": False, "qkv_bias": False}, 16),
    ({"pos_embed": "sincos2d", "act": "gelu_tanh"}, 16),
    ({"act": "quick_gelu", "mlp_ratio": 2.0}, 16),
    ({"global_pool": "avgmax", "pool_include_prefix": True, "final_norm": False}, 16),
]


@pytest.mark.parametrize(("fields", "width"), mostly_long(FIELDS, FIELDS[6:8]))
def test_every_field_gives_logits_features_and_maps(apply, create, fields, width):
    model, params, images = create(**fields)
    logits = apply(model, params, images)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    features = apply(model, params, images, method="features")
    assert features.shape == (2, width) and features.dtype == jnp.float32
    maps = apply(model, params, images, method="feature_maps", blocks=(0, -1))
    assert [m.shape for m in maps] == [(2, 2, 3, 16)] * 2
    headless = apply(model.clone(num_classes=0), params, images)
    np.testing.assert_allclose(headless, features, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("norm_layer", mostly_long(["layernorm", "rmsnorm"], ["layernorm"]))
def test_normed_maps_are_what_the_head_would_read_of_each_block(apply, create, norm_layer, scan):
    """The last one's mean is the features; each is the norm of the map that has none."""
    model, params, images = create(
        global_pool="avg", reg_tokens=2, norm_layer=norm_layer, num_classes=0
    )
    features = apply(model, params, images)
    run, params = (model.clone(scan=True), stack_blocks(params)) if scan else (model, params)
    maps = functools.partial(apply, run, params, images, method="feature_maps")
    plain, normed = maps(), maps(norm=True)
    np.testing.assert_allclose(normed[-1].mean((1, 2)), features, atol=1e-5)
    norm = {name: np.asarray(leaf, np.float64) for name, leaf in params["norm"].items()}
    for before, after in zip(plain, normed, strict=True):
        x = np.asarray(before, np.float64)
        x = x - x.mean(-1, keepdims=True) * (norm_layer == "layernorm")
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(after, x * norm["scale"] + norm.get("bias", 0), atol=1e-4)
    (second,) = maps(norm=True, blocks=(1,))
    np.testing.assert_array_equal(second, normed[1])


def test_a_norm_that_follows_pooling_acts_on_no_map(apply, create):
    model, params, images = create(global_pool="avg", fc_norm=True)
    maps = functools.partial(apply, model, params, images, method="feature_maps")
    jax.tree.map(np.testing.assert_array_equal, maps(norm=True), maps())


@pytest.mark.parametrize(
    "fields", [{"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": True}]
)
def test_average_pooling_leaves_the_prefix_out_and_norms_where_it_says(apply, create, fields):
    model, params, images = create(reg_tokens=2, **fields)
    tokens = apply(model, params, images, method="feature_maps")[-1].reshape(2, 6, 16)
    norm = params["fc_norm" if model.fc_norm else "norm"]

    def layer_norm(x):
        x = np.asarray(x, np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])

    want = layer_norm(tokens.mean(1)) if model.fc_norm else layer_norm(tokens).mean(1)
    got = apply(model, params, images, method="features")
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_distillation_averages_two_heads_that_read_two_tokens(apply, create):
    model, params, images = create(dist_token=True)
    logits = apply(model, params, images)
    first = dict(params, head_dist=jax.tree.map(jnp.zeros_like, params["head_dist"]))
    second = dict(params, head=jax.tree.map(jnp.zeros_like, params["head"]))
    parts = [apply(model, p, images) for p in (first, second)]
    assert not np.allclose(*parts, atol=1e-2)
    np.testing.assert_allclose(logits, parts[0] + parts[1], atol=1e-5)


def test_sincos_channels_are_waves_over_the_grid():
    """Half of the channels depend on the column alone, half on the row; neighbours rotate."""
    table = sincos_2d(3, 4, embed_dim=8).reshape(3, 4, 8)
    assert (table[0, :, :4] == table[2, :, :4]).all() and (table[:, 0, 4:] == table[:, 3, 4:]).all()
    x, y = np.arange(4), np.arange(3)
    np.testing.assert_allclose(table[0, :, 0], np.sin(x), atol=1e-6)
    np.testing.assert_allclose(table[0, :, 1], np.sin(x * 1e-4), atol=1e-6)
    np.testing.assert_allclose(table[0, :, 2], np.cos(x), atol=1e-6)
    np.testing.assert_allclose(table[:, 0, 4], np.sin(y), atol=1e-6)


ROTARY = {"rope_type": "mixed", "pos_embed": "none", "qkv_bias": "qv", "norm_layer": "rmsnorm"}


@pytest.mark.long
def test_blocks_with_frequencies_of_their_own_are_scanned(create, check_scan):
    check_scan(*create(**ROTARY), remat="full")


@pytest.mark.parametrize("rope_type", mostly_long(["axial", "centred", "mixed"], ["mixed"]))
def test_without_a_table_images_may_have_any_size_that_patches_divide(apply, create, rope_type):
    """The numbers are those of a model of that size."""
    model, params, _ = create(**ROTARY | {"rope_type": rope_type})
    other = model.clone(img_size=(12, 16))
    images = jax.random.normal(jax.random.key(1), (2, 12, 16, 3))
    np.testing.assert_array_equal(apply(model, params, images), apply(other, params, images))
    (last,) = apply(model, params, images, method="feature_maps", blocks=(-1,))
    assert last.shape == (2, 3, 4, 16)
    assert model.geometry((12, 16)).grid == (3, 4)
    with pytest.raises(UserError, match="img_size=12x15 is no multiple of patch_size=4x4"):
        apply(model, params, images[:, :, :15])


@pytest.mark.parametrize("remat", mostly_long(["none", "full", "dots", True], ["full"]))
def test_scan_and_remat_give_the_loops_numbers_and_gradients(create, check_scan, remat):
    check_scan(*create(), remat=remat)


def test_bfloat16_computes_in_it_and_keeps_float32_outside(apply, create, key):
    model, params, images = create()
    half = model.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, key, images)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    logits = apply(half, params, images)
    assert logits.dtype == jnp.float32
    maps = jax.eval_shape(functools.partial(apply, half, method="feature_maps"), params, images)
    assert maps[0].dtype == jnp.bfloat16
    exact = apply(model, params, images)
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_training_drops_and_evaluation_does_not(apply, create, key):
    for rate in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
        model, params, images = create(**{rate: 0.5})
        outs = [
            apply(model, params, images, train=True, rngs={"dropout": jax.random.key(i)})
            for i in range(2)
        ]
        assert not np.allclose(*outs), rate
        exact = apply(model.clone(**{rate: 0.0}), params, images)
        np.testing.assert_array_equal(apply(model, params, images), exact)


def test_another_image_size_is_refused_with_both_sizes(apply, create):
    model, params, _ = create()
    with pytest.raises(
        UserError, match="the images are 8x8, but the model takes 8x12; resize them"
    ):
        apply(model, params, jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("family", ["vit", "swin", "swinv2"])
def test_images_of_other_channels_are_refused_with_both_numbers(family):
    model = create_model(family, in_chans=4, num_classes=2)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    with pytest.raises(UserError, match=r"the images have 3 channels .* takes in_chans=4"):
        jax.eval_shape(model.init, jax.random.key(0), images)
    with pytest.raises(UserError, match="in_chans=0 must be at least 1"):
        create_model(family, in_chans=0)


def test_all_misfits_are_listed_at_once():
    with pytest.raises(UserError) as error:
        create_model(
            "vit", img_size=30, embed_dim=10, num_heads=3, pos_embed="3d", class_token=False
        )
    for part in ("30x30 is no multiple", "num_heads=3", "pos_embed='3d'", "needs class_token=True"):
        assert part in str(error.value)


GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "models" / "timm_vit.npz")
CASES = sorted({key.partition("/")[0] for key in GOLDENS})


@pytest.mark.parametrize("case", mostly_long(CASES, CASES[:1]))
def test_small_models_give_what_timms_give(case, tmp_path):
    """The cases are described in tests/goldens/write_timm_vit.py."""
    arrays = {
        key.removeprefix(f"{case}/"): GOLDENS[key] for key in GOLDENS if key.startswith(f"{case}/")
    }
    images = jnp.asarray(arrays["images"])
    weights = {n.removeprefix("weights/"): a for n, a in arrays.items() if "weights/" in n}
    path = tmp_path / "model.safetensors"
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, path)
    grid = tuple(side // 4 * 4 for side in images.shape[1:3])
    model, variables = load_pretrained(path, num_heads=2, img_size=grid)
    if grid != images.shape[1:3]:
        model = model.clone(img_size=images.shape[1:3], crop_to_patches=True)
    with jax.default_matmul_precision("highest"):
        for want, method in (("features", "features"), ("logits", "__call__")):
            got = apply(model, variables, images, method=method)
            np.testing.assert_allclose(got, arrays[want], rtol=1e-5, atol=1e-5)


def test_pixels_beyond_the_last_patch_are_left_out_only_where_that_is_set():
    fields = TINY | {"img_size": (10, 15)}
    with pytest.raises(
        UserError, match="=10x15 is no multiple of patch_size=4x4, as 8x12 or 12x16 are"
    ):
        create_model("vit", **fields)
    assert create_model("vit", **fields, crop_to_patches=True).grid == (2, 3)
    with pytest.raises(UserError, match="img_size=3x15"):
        create_model("vit", **fields | {"img_size": (3, 15)}, crop_to_patches=True)

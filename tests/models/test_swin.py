"""Swin: truths of the architecture; the originals' numbers are in tests/convert."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from kinds import mostly_long

from vitswin_jax import create_model, load_pretrained, save_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin import PatchMerging

TINY = {
    "img_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 3),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_classes": 5,
}


@pytest.fixture
def create(random_params):
    """Creates a tiny Swin, its parameters and two images."""

    def create(*, size=(16, 16), **fields):
        model = create_model("swin", **TINY | fields)
        images = jax.random.normal(jax.random.key(0), (2, *size, 3))
        return model, random_params(model, images), images

    return create


def reach(apply, model, params, images, stage=0):
    """Which tokens of the stage's map change when one pixel of the image does."""
    before, after = (
        apply(model, params, x, method="feature_maps")[stage]
        for x in (images, images.at[:, 0, 0].add(1.0))
    )
    moved = jnp.abs(before - after).max((0, -1)) > 1e-6
    return np.asarray(moved)


def test_a_windowed_block_keeps_to_its_window_and_a_shifted_one_joins_neighbours(apply, create):
    """One pixel in the corner: windows of 4x4 tokens on an 8x8 map, then windows shifted by 2."""
    model, params, images = create(depths=(1, 1))
    windowed = np.zeros((8, 8), bool)
    windowed[:4, :4] = True
    np.testing.assert_array_equal(reach(apply, model, params, images), windowed)
    model, params, images = create(depths=(2, 1))
    shifted = np.zeros((8, 8), bool)
    shifted[:6, :6] = True  # the corner's window touches all four shifted ones, the edge none
    np.testing.assert_array_equal(reach(apply, model, params, images), shifted)


def test_without_the_shift_all_blocks_keep_to_their_windows(apply, create):
    model, params, images = create(depths=(2, 1), shift_windows=False)
    windowed = np.zeros((8, 8), bool)
    windowed[:4, :4] = True
    np.testing.assert_array_equal(reach(apply, model, params, images), windowed)


@pytest.mark.parametrize("attn_impl", ["xla", "pairs"])
@pytest.mark.parametrize("relative_bias", [False, True])
def test_only_the_bias_tells_places_of_a_window_apart(apply, create, relative_bias, attn_impl):
    """One window is all of the map: without the bias, patches are a set (Vaswani et al., 3.5)."""
    model, params, images = create(
        depths=(2,),
        num_heads=(2,),
        window_size=8,
        relative_bias=relative_bias,
        attn_impl=attn_impl,
    )
    patches = rearrange(images, "b (i p) (j q) c -> b (i j) p q c", p=2, q=2)
    mixed = patches[:, np.random.default_rng(0).permutation(64)]
    mixed = rearrange(mixed, "b (i j) p q c -> b (i p) (j q) c", i=8)
    before, after = (apply(model, params, x) for x in (images, mixed))
    assert np.allclose(before, after, atol=1e-5) != relative_bias


@pytest.mark.parametrize("name", ["swinv2", "swin_mlp", "swinv2_cr", "swin_moe"])
def test_a_bias_that_is_no_table_cannot_be_left_out(name):
    fields = {"num_heads": (2, 4), "depths": (1, 1), "embed_dim": 8, "relative_bias": False}
    with pytest.raises(UserError, match=r"relative_bias=False: Swin.* cannot do without"):
        create_model(name, **fields).check()


@pytest.mark.parametrize("field", ["shift_windows", "relative_bias"])
def test_only_native_files_have_a_swin_without_a_piece(create, tmp_path, field):
    model, params, _ = create(**{field: False})
    again, _ = load_pretrained(save_pretrained(tmp_path / "own", model, {"params": params}))
    assert again == model
    for other in ("timm", "huggingface", "microsoft"):
        with pytest.raises(UserError, match=rf"{other} cannot hold swin with .*{field}=False"):
            save_pretrained(tmp_path / other, model, {"params": params}, format=other)


def test_a_normed_map_is_the_last_stages_alone(apply, create):
    model, params, images = create(num_classes=0)
    maps = functools.partial(apply, model, params, images, method="feature_maps")
    plain, normed = maps(), maps(norm=True)
    jax.tree.map(np.testing.assert_array_equal, normed[:-1], plain[:-1])
    assert not np.allclose(normed[-1], plain[-1])
    np.testing.assert_allclose(normed[-1].mean((1, 2)), apply(model, params, images), atol=1e-5)


def test_merging_concatenates_neighbours_column_by_column(apply, key):
    """(0, 0), (1, 0), (0, 1), (1, 1) as (row, column), with zeros where an odd map ends."""
    x = jax.random.normal(key, (1, 3, 4, 2))
    merging = PatchMerging(
        norm_eps=1e-5, kernel_init=jax.nn.initializers.normal(0.1), dtype=jnp.float32
    )
    params = merging.init(key, x)["params"]
    got = merging.apply({"params": params}, x)
    padded = np.pad(np.asarray(x, np.float64), [(0, 0), (0, 1), (0, 0), (0, 0)])
    for i in range(2):
        for j in range(2):
            places = [(0, 0), (1, 0), (0, 1), (1, 1)]
            row = np.concatenate([padded[0, 2 * i + r, 2 * j + c] for r, c in places])
            row = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
            want = row @ np.asarray(params["reduction"]["kernel"])
            np.testing.assert_allclose(got[0, i, j], want, atol=1e-5)


SIZES = [(18, 10), (15, 7), (3, 5), (16, 16), (33, 16)]
WAYS = [(size, first) for size in SIZES for first in (True, False)]


@pytest.mark.parametrize(("size", "pad_before_roll"), mostly_long(WAYS, WAYS[1:2]))
def test_any_image_size_is_padded(apply, create, size, pad_before_roll):
    model, params, images = create(size=size, pad_before_roll=pad_before_roll)
    logits = apply(model, params, images)
    assert logits.shape == (2, 5) and np.isfinite(logits).all() and logits.dtype == jnp.float32
    maps = jax.eval_shape(functools.partial(apply, model, method="feature_maps"), params, images)
    half = [-(-side // 2) for side in size]
    assert maps[0].shape == (2, *half, 8)
    assert maps[1].shape == (2, *(-(-side // 2) for side in half), 16)


def test_rectangular_images_and_windows(apply, create):
    model, params, images = create(size=(16, 24), img_size=(16, 24), window_size=(2, 6))
    table = params["stage_0"]["block_0"]["attn"]["relative_position_bias_table"]
    assert table.shape == (3 * 11, 2)
    assert reach(apply, model, params, images)[:, 11].any() == False  # noqa: E712  a window is 6 wide
    assert apply(model, params, images).shape == (2, 5)


def test_windows_are_clipped_where_the_map_is_smaller(create):
    """An image of 4x4 tokens and, after merging, 2x2: the window of 4 fits once, then shrinks."""
    for clip, sides in (("per_axis", (4, 2)), ("min", (4, 2)), ("never", (4, 4))):
        _, params, _ = create(size=(8, 8), img_size=8, window_clip=clip)
        for stage, side in enumerate(sides):
            table = params[f"stage_{stage}"]["block_1"]["attn"]["relative_position_bias_table"]
            assert table.shape[0] == (2 * side - 1) ** 2, clip


def test_a_fresh_model_gives_every_class_the_same_logit(key):
    model = create_model("swin", **TINY)
    logits, _ = jax.jit(model.init_with_output)(key, jax.random.normal(key, (2, 16, 16, 3)))
    np.testing.assert_array_equal(logits, jnp.zeros((2, 5)))


def test_absolute_positions_are_added_and_bind_the_size(apply, create):
    model, params, images = create(ape=True)
    assert params["absolute_pos_embed"].shape == (1, 8, 8, 8)
    moved = dict(params, absolute_pos_embed=params["absolute_pos_embed"][:, ::-1])
    assert not np.allclose(*(apply(model, p, images) for p in (params, moved)))
    with pytest.raises(UserError, match="the images are 8x16, but with ape=True"):
        apply(model, params, images[:, :8])


@pytest.mark.long
@pytest.mark.parametrize("remat", mostly_long(["none", "full"], ["none"]))
def test_scan_over_pairs_gives_the_loops_numbers_and_gradients(create, check_scan, remat):
    check_scan(*create(), remat=remat)


PAIRS = [(family, first) for family in ("swin", "swinv2") for first in (True, False)]


@pytest.mark.parametrize(("family", "pad_before_roll"), mostly_long(PAIRS, [("swin", False)]))
def test_windows_in_pairs_give_the_same_numbers_and_gradients(
    random_params, family, pad_before_roll
):
    """Of maps of 7x7 and, after merging, 4x4 tokens: four windows of 4x2 across, then two."""
    fields = {"pretrained_window_sizes": (0, 0)} if family == "swinv2" else {}
    fields |= {"window_size": (4, 2), "depths": (2, 1), "pad_before_roll": pad_before_roll}
    model = create_model(family, **TINY | fields)
    images = jax.random.normal(jax.random.key(0), (2, 14, 14, 3))
    params = random_params(model, images)
    paired = model.clone(attn_impl="pairs")

    def loss(params, model):
        out = model.apply({"params": params}, images)
        return (out**2).sum(), out

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.abs(y).max()) + 1e-6),
        run(params, paired),
        run(params, model),
    )
    program = jax.make_jaxpr(functools.partial(loss, model=paired))(params)
    assert "[2,4,2,16,16]" in str(program)  # images, pairs, heads, and the tokens of a pair


def test_stochastic_depth_rises_from_none_to_all(create, apply):
    """With a rate of almost 1 at the end, the last block is passed by; the first never is."""
    model, params, images = create(depths=(1, 1), drop_path_rate=0.9999999)
    last = params["stage_1"]["block_0"]
    silent = {
        **last,
        "attn": {**last["attn"], "proj": jax.tree.map(jnp.zeros_like, last["attn"]["proj"])},
        "mlp": {**last["mlp"], "fc2": jax.tree.map(jnp.zeros_like, last["mlp"]["fc2"])},
    }
    without = {**params, "stage_1": {**params["stage_1"], "block_0": silent}}
    want = apply(model, without, images, method="feature_maps")
    rngs = {"dropout": jax.random.key(1)}
    got = apply(model, params, images, train=True, rngs=rngs, method="feature_maps")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got, want)
    assert not np.allclose(apply(model, params, images, method="feature_maps")[1], want[1])


def test_all_misfits_are_listed_at_once():
    with pytest.raises(UserError) as error:
        create_model("swin", embed_dim=10, depths=(2, 2), num_heads=(3, 4, 5), window_size=0)
    for part in ("differ in length", "stage 0's width 10", "window_size and patch_size"):
        assert part in str(error.value)

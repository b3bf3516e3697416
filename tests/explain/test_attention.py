"""Attention that is known by construction must come back where it was put."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.explain import attention
from vitswin_jax.models.registry import create_model
from vitswin_jax.nn.relative import ContinuousPositionBias, log_spaced_coordinates
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.weights.shapes import parameter_shapes

SWIN = {
    "img_size": 14,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 1),
    "num_heads": (2, 2),
    "window_size": 3,
    "num_classes": 3,
    "window_clip": "never",
}
VIT = {
    "img_size": 12,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}


def random_variables(model, *, scale=0.3):
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(model)
    flat = {name: rng.normal(size=s, scale=scale).astype(np.float32) for name, s in shapes.items()}
    return {"params": unflatten_dict(flat, sep="/")}


def images_of(model, count=2):
    size = (model.img_size, model.img_size)
    return np.random.default_rng(1).normal(size=(count, *size, 3)).astype(np.float32)


def looking_towards(offset, **fields):
    """A Swin all of whose heads look at the token `offset` = (dy, dx) away, its window allowing.

    Queries and keys are zero; the row of the table for that offset is large.
    """
    model = create_model("swin", **SWIN | fields)
    variables = random_variables(model)
    for stage, depth in enumerate(model.depths):
        for block in range(depth):
            layer = variables["params"][f"stage_{stage}"][f"block_{block}"]["attn"]
            layer["qkv"] = jax.tree.map(np.zeros_like, layer["qkv"])
            table = np.zeros_like(layer["relative_position_bias_table"])
            side = int(len(table) ** 0.5)
            row = (side // 2 - offset[0]) * side + side // 2 - offset[1]  # query less key
            table[row] = 60.0
            layer["relative_position_bias_table"] = table
    return model, variables


def matrix_of(layer, image=0, head=0):
    weights = layer.weights[image, :, head]
    return attention.stitch(weights, layer.tokens, num_tokens=layer.num_tokens).toarray()


@pytest.mark.parametrize("offset", [(0, 1), (-1, 1), (2, 0)])
@pytest.mark.parametrize("pad_before_roll", [True, False])
def test_what_windows_attend_to_comes_back_to_its_place(offset, pad_before_roll):
    """On a 7x7 map in windows of 3 shifted by 1, by hand: which tokens share a window."""
    model, variables = looking_towards(offset, pad_before_roll=pad_before_roll)
    plain, shifted = attention.attention_maps(model, variables, images_of(model)).layers[:2]
    assert (plain.size, plain.window, plain.stride) == ((7, 7), (3, 3), (2, 2))
    for layer, edges in ((plain, (0, 3, 6)), (shifted, (0, 1, 4))):
        windows = np.searchsorted(edges, np.arange(7), side="right")
        matrix, seen = matrix_of(layer), 0
        for y, x in np.ndindex(7, 7):
            to_y, to_x = y + offset[0], x + offset[1]
            inside = 0 <= to_y < 7 and 0 <= to_x < 7
            if inside and windows[y] == windows[to_y] and windows[x] == windows[to_x]:
                want = np.zeros((7, 7))
                want[to_y, to_x] = 1
                np.testing.assert_allclose(matrix[7 * y + x].reshape(7, 7), want, atol=1e-6)
                seen += 1
        assert seen >= 14


def test_shifted_windows_send_nothing_round_the_edge():
    """A random model: weights sum to one, and no token attends to one of another window."""
    model = create_model("swin", **SWIN | {"img_size": 18})  # 9x9: no padding
    variables = random_variables(model)
    layer = attention.attention_maps(model, variables, images_of(model)).layers[1]
    np.testing.assert_allclose(layer.weights.sum(-1), 1, atol=1e-6)
    windows = np.searchsorted((0, 2, 5, 8), np.arange(9) + 1, side="right")
    shared = windows[:, None] * 10 + windows
    same = shared.reshape(-1, 1) == shared.reshape(1, -1)
    matrix = matrix_of(layer)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert (matrix[same] > 1e-4).all()
    assert (matrix[~same] < 1e-30).all()


def test_stitch_leaves_padding_out():
    tokens = np.array([[0, 1], [2, -1]])
    weights = np.array([[[0.25, 0.75], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
    matrix = attention.stitch(weights, tokens, num_tokens=3).toarray()
    np.testing.assert_array_equal(matrix, [[0.25, 0.75, 0], [1, 0, 0], [0, 0, 0.5]])


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_merging_is_the_mean_of_neighbours(size):
    numbers = np.random.default_rng(0).normal(size=size)
    merged = attention.merging(size) @ numbers.ravel()
    height, width = -(-size[0] // 2), -(-size[1] // 2)
    for i, j in np.ndindex(height, width):
        want = numbers[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
        np.testing.assert_allclose(merged.reshape(height, width)[i, j], want)


def test_rollout_of_tokens_that_attend_to_themselves():
    """Then only merging mixes: a token of the last map comes from its own 2x2 patches."""
    model, variables = looking_towards((0, 0), img_size=12, window_clip="per_axis")
    maps = attention.attention_maps(model, variables, images_of(model))
    product = functools.reduce(lambda a, b: b @ a, attention.transitions(maps, 0)).toarray()
    want = np.zeros((9, 36))
    for y, x in np.ndindex(6, 6):
        want[y // 2 * 3 + x // 2, 6 * y + x] = 0.25
    np.testing.assert_allclose(product, want, atol=1e-6)
    np.testing.assert_allclose(attention.rollout(maps), np.full((2, 6, 6), 1 / 36), atol=1e-7)


def test_rollout_follows_the_only_path_through_shifted_windows():
    """Every token looks one to the right; without a residual nothing stays where it was."""
    model, variables = looking_towards((0, 1), depths=(2,), num_heads=(2,), img_size=12)
    maps = attention.attention_maps(model, variables, images_of(model, 1))
    steps = attention.transitions(maps, 0, residual=0.0)
    two = (steps[1] @ steps[0]).toarray().reshape(6, 6, 6, 6)
    # Windows begin at 0 and 3, the shifted ones at 1 and 4: 2 -> 3 -> 4 crosses an edge of each.
    want = np.zeros((6, 6))
    want[3, 4] = 1
    np.testing.assert_allclose(two[3, 2], want, atol=1e-6)


POOLS = [
    {},
    {"reg_tokens": 2},
    {"dist_token": True},
    {"global_pool": "avg", "class_token": False},
    {"global_pool": "token_avg"},
    {"global_pool": "map", "class_token": False},
    {"global_pool": "map", "reg_tokens": 2},
    {"global_pool": "map", "reg_tokens": 2, "pool_include_prefix": True},
]


@pytest.mark.parametrize("fields", mostly_long(POOLS, POOLS[1::3]))
def test_rollout_of_a_vit_is_the_product_of_dense_matrices(fields):
    model = create_model("vit", **VIT | fields)
    variables = random_variables(model)
    maps = attention.attention_maps(model, variables, images_of(model))
    n, prefix = maps.layers[0].num_tokens, model.num_prefix_tokens
    assert n == 9 + prefix
    product = np.eye(n)
    for layer in maps.layers:
        assert layer.weights.shape == (2, 1, 2, n, n)
        product = (layer.weights[0, 0].mean(0) / 2 + np.eye(n) / 2) @ product
    rows = {"avg": product.mean(0), "token_avg": (product[0] + product[prefix:].mean(0)) / 2}
    rows["token"] = product[:2].mean(0) if model.dist_token else product[0]
    rows["map"] = maps.pooling[0] @ product
    want = rows[model.global_pool][prefix:].reshape(3, 3)
    np.testing.assert_allclose(attention.rollout(maps)[0], want, atol=1e-6)
    np.testing.assert_allclose(maps.pooling.sum(1), 1, atol=1e-6)
    assert maps.query == (0 if model.global_pool == "token" else None)


def test_layouts_agree():
    model = create_model("vit", **VIT)
    variables = random_variables(model)
    stacked = {"params": stack_blocks(variables["params"])}
    one = attention.attention_maps(model, variables, images_of(model))
    two = attention.attention_maps(model.clone(scan=True), stacked, images_of(model))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a.weights, b.weights)


def test_a_model_without_attention_is_one_line():
    model = create_model("swin_mlp", **{k: v for k, v in SWIN.items() if k != "window_clip"})
    with pytest.raises(UserError, match="SwinMlp has no attention"):
        attention.attention_maps(model, random_variables(model), images_of(model))


def uniform(layer, **fields):
    weights = np.full_like(layer.weights, 1 / layer.weights.shape[-1])
    return attention.LayerAttention(**vars(layer) | {"weights": weights} | fields)


def test_distance_of_even_attention_is_the_mean_distance():
    model = create_model("vit", **VIT | {"reg_tokens": 1})
    maps = attention.attention_maps(model, random_variables(model), images_of(model, 1))
    pairs = [4 * np.hypot(y - v, x - u) for y, x in np.ndindex(3, 3) for v, u in np.ndindex(3, 3)]
    got = attention.mean_attention_distance(uniform(maps.layers[0]))
    np.testing.assert_allclose(got, np.full((1, 2), np.mean(pairs)), rtol=1e-6)


def test_distance_in_swin_is_in_pixels_of_the_image():
    """Windows of 3x3 that look two down: one row of three can, the last two look at all evenly."""
    model, variables = looking_towards((2, 0), img_size=12)
    layers = attention.attention_maps(model, variables, images_of(model, 1)).layers
    square = list(np.ndindex(3, 3))
    total = sum(
        2 if y == 0 else np.mean([np.hypot(y - v, x - u) for v, u in square]) for y, x in square
    )
    for layer, pixels in ((layers[0], 2), (layers[2], 4)):
        got = attention.mean_attention_distance(layer)
        np.testing.assert_allclose(got, np.full((1, 2), pixels * total / 9), rtol=1e-5)


def test_received_is_each_keys_share():
    model = create_model("swin", **SWIN)
    layer = attention.attention_maps(model, random_variables(model), images_of(model)).layers[1]
    got = attention.received(layer)
    single = attention.received(layer, query=23)
    assert got.shape == (2, 2, 7, 7)
    for image, head in np.ndindex(2, 2):
        matrix = matrix_of(layer, image, head)
        np.testing.assert_allclose(got[image, head].ravel(), matrix.mean(0), atol=1e-6)
        np.testing.assert_allclose(single[image, head].ravel(), matrix[23], atol=1e-6)


def test_biases_of_v1_are_the_table_by_offset():
    model = create_model("swin", **SWIN)
    variables = random_variables(model)
    layer = attention.attention_maps(model, variables, images_of(model)).layers[1]
    maps = attention.relative_bias_maps(layer)
    attn = variables["params"]["stage_0"]["block_1"]["attn"]
    table = attn["relative_position_bias_table"].reshape(5, 5, 2)
    for dy, dx in np.ndindex(5, 5):  # of the key, from 2 up and left; the table has the query's
        np.testing.assert_array_equal(maps[:, dy, dx], table[4 - dy, 4 - dx])


def test_biases_of_v2_are_what_its_network_says():
    fields = {k: v for k, v in SWIN.items() if k != "window_clip"}
    model = create_model("swinv2", **fields | {"pretrained_window_sizes": (0, 0)})
    variables = random_variables(model)
    layer = attention.attention_maps(model, variables, images_of(model)).layers[0]
    maps = attention.relative_bias_maps(layer)
    network = {"params": variables["params"]["stage_0"]["block_0"]["attn"]["cpb_mlp"]}
    offsets = log_spaced_coordinates((3, 3), (0, 0))
    raw = ContinuousPositionBias(2).apply(network, offsets)
    want = 16 / (1 + np.exp(-np.asarray(raw, np.float64)))
    for (dy, dx), bias in zip(np.ndindex(5, 5), want, strict=True):
        np.testing.assert_allclose(maps[:, 4 - dy, 4 - dx], bias, rtol=1e-5)
    assert maps.std() > 0


def test_biases_of_a_vit_leave_its_prefix_out():
    fields = {"pos_embed": "relative", "pos_embed_at": "shared"}
    model = create_model("vit", **VIT | fields)
    variables = random_variables(model)
    layer = attention.attention_maps(model, variables, images_of(model)).layers[0]
    table = variables["params"]["relative_position_bias_table"][:25].reshape(5, 5, 2)
    maps = attention.relative_bias_maps(layer)
    np.testing.assert_array_equal(maps, np.moveaxis(table[::-1, ::-1], -1, 0))
    plain = create_model("vit", **VIT)
    layer = attention.attention_maps(plain, random_variables(plain), images_of(plain)).layers[0]
    assert attention.relative_bias_maps(layer) is None

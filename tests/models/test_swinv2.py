"""Swin V2: truths of the architecture; the originals' numbers are in tests/convert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import apply

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.models.swinv2 import CosineAttention
from vitswin_jax.nn.block import BlockOptions
from vitswin_jax.nn.relative import log_spaced_coordinates
from vitswin_jax.nn.scan import stack_blocks

TINY = {
    "img_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 1),
    "num_heads": (2, 4),
    "window_size": 4,
    "pretrained_window_sizes": (0, 0),
    "num_classes": 5,
}


def random_images(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


def test_an_offset_keeps_its_coordinates_in_a_larger_window():
    """Equation 4 by hand, and a window of 6x8 reading what a window of 4x4 was trained with."""
    before = log_spaced_coordinates((4, 4), (0, 0)).reshape(7, 7, 2)
    np.testing.assert_allclose(before[0, 6], [-np.log2(9) / 3, np.log2(9) / 3], rtol=1e-6)
    np.testing.assert_allclose(before[4, 3], [np.log2(1 + 8 / 3) / 3, 0], rtol=1e-6)
    larger = log_spaced_coordinates((6, 8), (4, 4)).reshape(11, 15, 2)
    np.testing.assert_array_equal(larger[2:9, 4:11], before)
    assert np.abs(larger).max() > np.abs(before).max()
    assert (log_spaced_coordinates((1, 1), (0, 0)) == 0).all()


def numpy_attention(params, x, window, heads):
    """Equation 2 and 3, pair by pair, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    q, k, v = np.einsum("nc,cthd->thnd", np.asarray(x, np.float64), p["qkv"]["kernel"])
    q, v = q + p["q_bias"][:, None], v + p["v_bias"][:, None]
    out = np.zeros((len(x), heads, q.shape[-1]))
    places = list(np.ndindex(window))
    for head in range(heads):
        scale = np.exp(min(p["logit_scale"].ravel()[head], np.log(100)))
        for i, query in enumerate(places):
            logits = []
            for j, other in enumerate(places):
                offset = 8 * np.subtract(query, other) / np.subtract(window, 1)
                offset = np.sign(offset) * np.log2(1 + np.abs(offset)) / 3
                hidden = offset @ p["cpb_mlp"]["fc1"]["kernel"] + p["cpb_mlp"]["fc1"]["bias"]
                bias = np.maximum(hidden, 0) @ p["cpb_mlp"]["fc2"]["kernel"][:, head]
                a, b = q[head, i], k[head, j]
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                logits.append(scale * cosine + 16 / (1 + np.exp(-bias)))
            weights = np.exp(logits - np.max(logits))
            out[i, head] = weights @ v[head] / weights.sum()
    return np.einsum("nhd,hdc->nc", out, p["proj"]["kernel"]) + p["proj"]["bias"]


def test_cosine_attention_equals_its_equations(random_params):
    """One head's temperature is beyond the limit of 0.01, and stops there."""
    attention = CosineAttention(2, BlockOptions(qkv_bias="qv"), window_size=(2, 3))
    x = random_images(1, 8) + 0.1 * random_images(6, 8)  # near each other: no softmax is one-hot
    params = random_params(attention, x, train=False)
    params["logit_scale"] = np.float32([2, 5]).reshape(2, 1, 1)
    got = jax.jit(lambda p: attention.apply({"params": p}, x, train=False))(params)
    np.testing.assert_allclose(got, numpy_attention(params, x, (2, 3), 2), rtol=2e-4, atol=2e-5)


def test_a_fresh_block_is_the_identity(key):
    """The norm after each branch starts at zero."""
    model = create_model("swinv2", **TINY | {"depths": (1, 1)})
    images = random_images(1, 16, 16, 3)

    @jax.jit
    def run(key):
        variables = model.init(key, images)
        first = model.apply(variables, images, method="feature_maps")[0]
        return first, model.apply(variables, images, method=lambda model, x: model.patch_embed(x))

    np.testing.assert_array_equal(*run(key))


def test_gradients_are_finite_where_pad_tokens_have_no_direction(random_params):
    """Biases start at zero, and then so are the queries and keys of padding."""
    model = create_model("swinv2", **TINY | {"depths": (1, 1)})
    images = random_images(1, 18, 10, 3)
    params = random_params(model, images)
    for stage in ("stage_0", "stage_1"):
        attention = params[stage]["block_0"]["attn"]
        attention["q_bias"] = np.zeros_like(attention["q_bias"])

    def loss(params):
        return (model.apply({"params": params}, images, method="features") ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.long
def test_scan_equals_loop(random_params):
    fields = TINY | {"depths": (3, 2)}
    model, scanned = create_model("swinv2", **fields), create_model("swinv2", **fields, scan=True)
    images = random_images(2, 16, 16, 3)
    params = random_params(model, images)
    stacked = stack_blocks(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
        jnp.shape, random_params(scanned, images)
    )
    want = apply(model, {"params": params}, images)
    got = apply(scanned, {"params": stacked}, images)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_parameters_fit_any_window(random_params):
    """No shape depends on the window: it is for the coordinates alone."""
    fields = TINY | {"window_size": 8, "pretrained_window_sizes": (4, 4)}
    models = create_model("swinv2", **TINY), create_model("swinv2", **fields)
    images = random_images(1, 16, 16, 3)
    params, others = (random_params(model, images) for model in models)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, others)


def test_the_key_has_no_bias_and_the_others_may_have_none(key):
    for qkv_bias, names in ((True, {"q_bias", "v_bias"}), (False, set())):
        model = create_model("swinv2", **TINY, qkv_bias=qkv_bias)
        params = jax.eval_shape(model.init, key, jnp.zeros((1, 16, 16, 3)))["params"]
        attention = params["stage_0"]["block_0"]["attn"]
        assert set(attention["qkv"]) == {"kernel"}
        assert set(attention) - {"qkv", "proj", "cpb_mlp", "logit_scale"} == names


def test_a_window_for_each_stage_must_be_complete():
    with pytest.raises(UserError, match=r"pretrained_window_sizes=.* each of the 2 stages"):
        create_model("swinv2", **TINY | {"pretrained_window_sizes": (12,)})
    with pytest.raises(UserError, match=r"window_size=.* 2 stages"):
        create_model("swinv2", **TINY | {"window_size": ((4, 4),)})

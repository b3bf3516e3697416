"""What a masked autoencoder's encoder sees, what that costs, and what is fixed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.models.masked import cut_patches, join_patches
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import create_model

FIELDS = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2,
          "num_classes": 0}  # fmt: skip


def create(**method):
    method = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2} | method
    return create_pretraining(create_model("vit", **FIELDS), method="mae", **method)


def encoder_flops(visible):
    """Of the encoder's forward and backward pass on so many of its 64 patches."""
    vit = create_model("vit", **FIELDS)
    x = jax.ShapeDtypeStruct((2, 8, 8, 32), jnp.float32)  # embedded
    places = jax.ShapeDtypeStruct((2, visible), jnp.int32)
    encode = functools.partial(vit.apply, method="encode_visible", train=False)
    variables = jax.eval_shape(
        functools.partial(vit.init, method="encode_visible", train=False),
        jax.random.key(0),
        x,
        places,
    )

    def loss(variables, x, places):
        return (encode(variables, x, places) ** 2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(variables, x, places).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.xla_behaviour
def test_the_encoders_work_is_that_of_the_visible_tokens():
    """Of attention it is less: pairs of tokens go with the square."""
    whole = encoder_flops(64)
    for visible in (6, 16, 32):
        share = encoder_flops(visible) / whole
        assert 0.8 * visible / 65 < share < 1.1 * (visible + 1) / 65


def test_hidden_pixels_reach_neither_the_encoder_nor_what_is_painted(key, random_params):
    model = create(norm_pix=False)
    images = jax.random.normal(key, (2, 32, 32, 3))
    masks = jax.random.permutation(key, jnp.arange(64) < 48).reshape(1, 8, 8).repeat(2, 0)
    params = random_params(model, images)
    hidden = masks.reshape(2, 64)[..., None]
    other = jnp.where(hidden, 7.0, cut_patches(images, (4, 4)))
    run = jax.jit(lambda images: model.apply({"params": params}, images, masks))
    ours, theirs = run(images), run(join_patches(other, (4, 4), grid=(8, 8)))
    painted = [np.asarray(cut_patches(out.image, (4, 4))) for out in (ours, theirs)]
    np.testing.assert_array_equal(painted[0][hidden[..., 0]], painted[1][hidden[..., 0]])
    assert not np.allclose(ours.loss, theirs.loss)  # the targets are others
    visible = ~np.asarray(hidden[..., 0])
    np.testing.assert_array_equal(painted[0][visible], cut_patches(images, (4, 4))[visible])


@pytest.mark.long
def test_positions_start_as_sin_cos_and_have_no_gradient(key):
    """Of column x and row y, channel by channel: sin and cos of x, then of y (MAE, section 3)."""
    model = create()
    images = jax.random.normal(key, (2, 32, 32, 3))
    params = jax.jit(model.init)(key, images)["params"]
    table = params["encoder"]["pos_embed"][0]
    np.testing.assert_array_equal(table[0], 0)
    x, y = 3, 5
    for i in range(8):
        w = 10_000 ** (-i / 8)
        want = [np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)]
        np.testing.assert_allclose(table[1 + 8 * y + x, i::8], want, atol=1e-6)

    def loss(params):
        return model.apply({"params": params}, images, rngs={"mask": key}).loss.sum()

    grads = jax.jit(jax.grad(loss))(params)
    assert not grads["encoder"]["pos_embed"].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["decoder"]))


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_as_many_patches_are_visible_as_the_ratio_leaves(ratio):
    assert create(mask_ratio=ratio).visible == 64 * (1 - ratio)

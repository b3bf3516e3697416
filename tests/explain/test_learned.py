"""What parameters show, against scikit-learn and against the tree itself."""

import numpy as np
from flax.traverse_util import unflatten_dict
from sklearn.decomposition import PCA

from vitswin_jax.explain.learned import patch_filters, position_embedding
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.shapes import parameter_shapes

VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 40, "depth": 1, "num_heads": 2}


def random_params(model):
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(model)
    return unflatten_dict({k: rng.normal(size=s) for k, s in shapes.items()}, sep="/")


def test_filters_are_principal_components():
    model = create_model("vit", **VIT)
    params = random_params(model)
    kernel = params["patch_embed"]["proj"]["kernel"]
    want = PCA(5).fit(kernel.reshape(12, 40).T).components_
    got = patch_filters(model, params, count=5).reshape(5, 12)
    np.testing.assert_allclose(np.abs((got * want).sum(1)), 1, atol=1e-9)
    np.testing.assert_array_equal(got.max(1), np.abs(got).max(1))


def test_filters_of_a_hybrid_are_of_no_colours():
    model = create_model("vit", **VIT | {"img_size": 64, "resnet_layers": (1, 1)})
    assert patch_filters(model, random_params(model)) is None


def test_positions_are_those_of_the_patches():
    for fields in ({"reg_tokens": 2}, {"no_embed_class": True}, {"dist_token": True}):
        model = create_model("vit", **VIT | fields)
        params = random_params(model)
        want = params["pos_embed"][0, -16:].reshape(4, 4, 40)
        np.testing.assert_array_equal(position_embedding(model, params), want.astype(np.float32))
    model = create_model("vit", **VIT | {"pos_embed": "learned2d"})
    params = random_params(model)
    got = position_embedding(model, params)
    np.testing.assert_allclose(got[3, 1, :20], params["pos_embed_y"][3, 0], rtol=1e-6)
    np.testing.assert_allclose(got[3, 1, 20:], params["pos_embed_x"][0, 1], rtol=1e-6)


def test_positions_that_patches_do_not_have():
    for fields in ({"pos_embed": "none"}, {"pos_embed_at": "every"}):
        model = create_model("vit", **VIT | fields)
        assert position_embedding(model, random_params(model)) is None
    swin = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depths": (1,), "num_heads": (1,)}
    model = create_model("swin", **swin)
    assert position_embedding(model, random_params(model)) is None
    model = create_model("swin", **swin, ape=True)
    params = random_params(model)
    got = position_embedding(model, params)
    np.testing.assert_array_equal(got, params["absolute_pos_embed"][0])

"""Grad-CAM against closed forms and against the gradient of a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw

from vitswin_jax.core.types import UserError
from vitswin_jax.explain.grad_cam import grad_cam
from vitswin_jax.models.registry import create_model
from vitswin_jax.nn.scan import stack_blocks

CLASSES = np.array([2, 0])


@pytest.fixture
def random_model():
    def random_model(name, **fields):
        model = create_model(name, img_size=12, embed_dim=8, num_classes=3, **fields)
        return model, draw(model, scale=0.5)

    return random_model


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)


@pytest.mark.long
def test_of_swin_is_the_closed_form_of_norm_mean_and_head(random_model, images):
    model, variables = random_model(
        "swin", patch_size=2, depths=(1, 1), num_heads=(1, 2), window_size=3
    )
    params = variables["params"]
    last = model.apply(variables, jnp.asarray(images), method="feature_maps")[-1]
    x = np.asarray(last, np.float64)  # b 3 3 16
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    unit = (x - x.mean(-1, keepdims=True)) / deviation
    w = params["norm"]["scale"] * params["head"]["kernel"].T[CLASSES] / 9  # b 16
    w = w[:, None, None]
    gradient = (w - w.mean(-1, keepdims=True) - unit * (w * unit).mean(-1, keepdims=True)) / (
        deviation
    )
    alpha = gradient.mean((1, 2), keepdims=True)
    want = np.maximum((alpha * x).sum(-1), 0)
    assert want.max() > 0
    np.testing.assert_allclose(grad_cam(model, variables, images, CLASSES), want, atol=1e-5)


def test_of_vit_is_the_gradient_where_the_last_block_begins(random_model, images):
    """With one block that is where the position embedding is added: its gradient is the same."""
    model, variables = random_model("vit", patch_size=4, depth=1, num_heads=2)
    params = variables["params"]

    def logit(positions, image, label):
        changed = {"params": {**params, "pos_embed": positions}}
        return model.apply(changed, image[None])[0, label]

    patches = np.asarray(images).reshape(2, 3, 4, 3, 4, 3)
    tokens = np.einsum("bipjqc,pqcd->bijd", patches, params["patch_embed"]["proj"]["kernel"])
    tokens = tokens + params["patch_embed"]["proj"]["bias"]
    tokens = tokens + params["pos_embed"][:, 1:].reshape(1, 3, 3, 8)
    positions = jnp.asarray(params["pos_embed"])
    got = grad_cam(model, variables, images, CLASSES)
    for i, label in enumerate(CLASSES):
        gradient = jax.jit(jax.grad(logit))(positions, jnp.asarray(images[i]), label)
        alpha = np.asarray(gradient)[0, 1:].mean(0)
        want = np.maximum(tokens[i] @ alpha, 0)
        np.testing.assert_allclose(got[i], want, atol=1e-5)
    assert got.max() > 0
    scanned = {"params": stack_blocks(params)}
    again = grad_cam(model.clone(scan=True, remat="full"), scanned, images, CLASSES)
    np.testing.assert_array_equal(again, got)


def test_classes_that_are_not_there_are_one_line(random_model, images):
    model, variables = random_model("vit", patch_size=4, depth=1, num_heads=2)
    with pytest.raises(UserError, match="class -1, 3: the model's classes are 0 to 2"):
        grad_cam(model, variables, images, np.array([3, -1]))
    with pytest.raises(UserError, match="no head"):
        grad_cam(model.clone(num_classes=0), variables, images, CLASSES)

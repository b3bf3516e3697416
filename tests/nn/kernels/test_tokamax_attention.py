"""`attn_impl="tokamax"` against the plain way, by tokamax's own formula where there is no GPU."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.attention import attend
from vitswin_jax.nn.kernels import tokamax_attention as module
from vitswin_jax.nn.kernels.tokamax_attention import tokamax_attention

VIT = {"img_size": 20, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {
    "img_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2,),
    "num_heads": (2,),
    "window_size": 3,
}


@pytest.fixture
def tokamax():
    """The package, which Python 3.12 and newer can have; it adds arrays of unequal ranks."""
    package = pytest.importorskip("tokamax")
    with jax.numpy_rank_promotion("allow"):
        yield package


def plain(q, k, v, bias, *, scale):
    """Computes the formula on (..., n, heads, d)."""
    q, k, v = (jnp.swapaxes(x, -3, -2) for x in (q, k, v))
    return jnp.swapaxes(attend(q * scale, k, v, biases=(bias,)), -3, -2)


@pytest.mark.parametrize("head_dim", [32, 72])
@pytest.mark.parametrize(
    ("batch", "tokens", "bias"), [((2, 4), 49, (4, 3, 49, 49)), ((2,), 65, (3, 65, 65))]
)
def test_values_and_gradients_are_the_formulas(tokamax, batch, tokens, bias, head_dim):
    """With biases for each window or for all, whose gradient is summed."""
    rng = np.random.default_rng(0)
    shapes = 4 * [(*batch, tokens, 3, head_dim)]
    q, k, v, pull = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    arrays = q, k, v, jnp.asarray(rng.normal(size=bias), jnp.float32)

    def run(attention):
        out, back = jax.vjp(functools.partial(attention, scale=head_dim**-0.5), *arrays)
        return out, *back(pull)

    got, want = (jax.jit(run, static_argnums=0)(x) for x in (tokamax_attention, plain))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("vit", VIT),
        ("vit", VIT | {"scan": True, "remat": "full"}),
        ("vit", VIT | {"pos_embed": "relative", "pos_embed_at": "every"}),
        ("vit", VIT | {"pos_embed": "relative", "pos_embed_at": "shared"}),
        ("swin", SWIN),
        ("swin", SWIN | {"pad_before_roll": False, "remat": "full"}),
        ("swinv2", SWIN | {"pretrained_window_sizes": (0,)}),
        ("swin_moe", SWIN | {"pretrained_window_sizes": (0,), "moe_stages": ()}),
    ],
)
def test_a_model_gives_its_numbers_and_gradients(
    tokamax, monkeypatch, random_params, family, fields
):
    traced = []

    def spy(*arrays, **options):
        traced.append(arrays)
        return tokamax_attention(*arrays, **options)

    monkeypatch.setattr(module, "tokamax_attention", spy)
    model = create_model(family, num_classes=3, **fields)
    images = jax.random.normal(jax.random.key(0), (2, model.img_size, model.img_size, 3))
    params = random_params(model, images)

    def loss(params, images, attn_impl):
        out = model.clone(attn_impl=attn_impl).apply({"params": params}, images)
        return (out**2).sum(), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.abs(y).max()) + 1e-6),
        run(params, images, "tokamax"),
        run(params, images, "xla"),
    )
    assert traced  # it did take that way


def test_what_its_kernel_refuses_is_one_line(tokamax):
    q = jnp.ones((1, 16, 1, 16))
    message = r"its kernel 'triton' does not take float32, 16 tokens and heads of 16 channels here"
    with pytest.raises(UserError, match=message) as caught:
        tokamax_attention(q, q, q, scale=1.0, kernel="triton")
    assert "\n" not in str(caught.value)


def test_a_package_that_does_not_work_is_one_line(monkeypatch):
    module._library.cache_clear()
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(UserError, match="the installed tokamax does not work with JAX"):
        module._library()


def test_without_the_package_a_model_refuses_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for family, fields in (("vit", VIT), ("swin", SWIN)):
        model = create_model(family, attn_impl="tokamax", **fields)
        images = jnp.zeros((1, model.img_size, model.img_size, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        with pytest.raises(UserError, match="needs the package tokamax") as caught:
            jax.eval_shape(model.apply, variables, images)
        assert "\n" not in str(caught.value)

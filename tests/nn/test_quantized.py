"""Products of 8-bit codes and their gradients, held against NumPy's in float64."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.nn.layers import Linear
from vitswin_jax.nn.mlp import Mlp
from vitswin_jax.nn.quantized import SCHEMES, multiplies_codes, product_of_codes, quantized
from vitswin_jax.nn.scan import stack_blocks

PRODUCTS = [  # every equation of `Linear`, also with its axes spelt out; sizes of kernel and inputs
    ("nc,cd->nd", "nc,cd->nd", (16, 12), (10, 16)),
    ("...nc,cthd->t...hnd", "bnc,cthd->tbhnd", (12, 3, 2, 4), (2, 5, 12)),
    ("...nc,cthd->...nthd", "bwnc,cthd->bwnthd", (12, 3, 2, 4), (2, 3, 5, 12)),
    ("...hnd,hdc->...nc", "bhnd,hdc->bnc", (2, 4, 12), (3, 2, 5, 4)),
]
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "int8": 127.0}
DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "int8": np.int8}
CODES = {"fp8": ("e4m3", "e5m2"), "int8": ("int8", "int8")}
FIELDS = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2),
        "window_size": 4}  # fmt: skip


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x, axes, kind):
    """What codes of a kind stand for, one scale for each slice along `axes`."""
    scale = np.abs(x).max(axes, keepdims=True) / np.float32(LARGEST[kind])
    codes = x / scale
    codes = np.rint(codes) if kind == "int8" else codes.astype(DTYPES[kind])
    return codes.astype(np.float64) * scale


def product(equation, a, b, kinds):
    """The einsum of two arrays, each rounded along the axes that are summed."""
    inputs, out = equation.split("->")
    rows = []
    for axes, x, kind in zip(inputs.split(","), (a, b), kinds, strict=True):
        summed = tuple(i for i, axis in enumerate(axes) if axis not in out)
        rows.append(x.astype(np.float64) if kind is None else rounded(x, summed, kind))
    return np.einsum(equation, *rows)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(
    ("equation", "spelt", "kernel", "inputs"), mostly_long(PRODUCTS, PRODUCTS[2:])
)
def test_values_and_gradients_are_products_of_codes(name, equation, spelt, kernel, inputs):
    x, k = draw(*inputs), draw(*kernel, seed=1)
    x[0] *= 100  # a token whose numbers are larger than the others' takes none of their precision
    forward, backward = CODES[name]
    first, out = spelt.split("->")
    first, second = first.split(",")
    want = product(spelt, x, k, (forward, forward))
    g = draw(*want.shape, seed=2)

    @jax.jit
    def value_and_gradients(x, k, g):
        y, transpose = jax.vjp(functools.partial(product_of_codes, name, equation), x, k)
        return y, *transpose(g)

    y, of_x, of_k = value_and_gradients(x, k, g)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    want = product(f"{out},{second}->{first}", g, k, (backward, forward))
    np.testing.assert_allclose(of_x, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    kinds = (backward, forward) if name == "fp8" else (None, None)
    want = product(f"{out},{first}->{second}", g, x, kinds)
    np.testing.assert_allclose(of_k, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("name", "error"), [("fp8", 0.04), ("int8", 0.012)])
def test_a_product_is_near_the_exact_one(name, error):
    """An e4m3 code is within 2⁻⁴ of its number, an int8 code within 1/254 of the row's largest."""
    x, k = draw(64, 256), draw(256, 32, seed=1)
    y = np.asarray(product_of_codes(name, "nc,cd->nd", jnp.array(x), jnp.array(k)))
    off = np.sqrt(((y - x @ k) ** 2).mean() / ((x @ k) ** 2).mean())
    assert error / 2 < off < error


@pytest.mark.parametrize("name", SCHEMES)
def test_products_multiply_8_bit_numbers(name):
    def loss(x, k):
        return product_of_codes(name, "nc,cd->nd", x, k).sum()

    x, k = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 6), jnp.bfloat16)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, k).as_text()
    found = re.findall(r"dot_general.* : \(tensor<\w*x(\w+)>, tensor<\w*x(\w+)>\)", text)
    want = {"fp8": [["f8E4M3FN", "f8E5M2"]] * 2, "int8": [["bf16", "bf16"], ["i8", "i8"]]}
    assert sorted(map(sorted, found)) == want[name]


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_stay_and_what_is_not_finite_shows_in_its_row(name):
    x = draw(5, 6)
    x[0], x[1, 2], x[2, 3], x[3] = 0.0, np.nan, np.inf, 1e-38
    y = np.asarray(product_of_codes(name, "nc,cd->nd", jnp.array(x), jnp.array(draw(6, 4))))
    assert (y[0] == 0).all()
    assert not np.isfinite(y[1:3]).any()
    assert np.isfinite(y[3:]).all() and y[4].all()


def draw_parameters(model, images):
    """Parameters of which none is zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda leaf: jnp.array(0.3 * draw(*leaf.shape, seed=leaf.size)), shapes)


def gradients(model, params, images, *, name=None, train=True):
    """The loss and the gradients of a model with stochastic depth, under a decorator or without."""

    def loss(params):
        rngs = {"dropout": jax.random.key(1)}
        return (model.apply({"params": params}, images, train=train, rngs=rngs) ** 2).mean()

    step = jax.value_and_grad(loss)
    return jax.jit(step if name is None else quantized(name)(step))(params)


def distance(tree, other):
    """How far a tree is from another, relative to that one's norm."""
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(each)]) for each in (tree, other))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


MODELS = [("fp8", "vit", FIELDS), ("int8", "swin", SWIN)]


@pytest.mark.parametrize(("name", "family", "fields"), mostly_long(MODELS, MODELS[1:]))
def test_a_model_has_near_gradients(name, family, fields):
    model = create_model(family, num_classes=3, **fields)
    images = jnp.array(draw(2, model.img_size, model.img_size, 3))
    params = draw_parameters(model, images)
    want, grads = gradients(model, params, images)
    got, rough = gradients(model, params, images, name=name)
    assert want != got and float(got) == pytest.approx(float(want), rel=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
    assert 1e-3 < distance(rough, grads) < 0.1


@pytest.mark.parametrize("name", SCHEMES)
def test_inference_and_the_parameters_stay_as_they_are(name):
    model = create_model("vit", num_classes=3, **FIELDS)
    images = jnp.zeros((2, 8, 8, 3))

    def init(images):
        return model.init(jax.random.key(0), images, train=True)

    def programs(decorate):
        variables = jax.eval_shape(decorate(init), images)
        return variables, str(jax.make_jaxpr(decorate(model.apply))(variables, images))

    assert programs(quantized(name)) == programs(lambda step: step)


WAYS = [{"scan": True, "remat": "full"}, {"remat": "dots"}]


@pytest.mark.long
@pytest.mark.parametrize("execution", mostly_long(WAYS, WAYS[:1]))
def test_scan_and_remat_change_nothing(execution):
    model = create_model("vit", num_classes=3, **FIELDS)
    images = jnp.array(draw(2, 8, 8, 3))
    params = draw_parameters(model, images)
    loss, grads = gradients(model, params, images, name="fp8")
    other = model.clone(**execution)
    if other.scan:
        params, grads = stack_blocks(params), stack_blocks(grads)
    got = gradients(other, params, images, name="fp8")
    assert float(got[0]) == pytest.approx(float(loss), rel=1e-4)
    assert distance(got[1], grads) < 1e-3 < distance(gradients(other, params, images)[1], grads)


@pytest.mark.long
@pytest.mark.parametrize("name", SCHEMES)
def test_of_a_layer_only_the_product_is_quantised(name):
    """The bias is added and the activation taken in the layer's dtype."""
    layer = Linear((6, 4), "nc,cd->nd", jnp.tanh, bias_init=jax.nn.initializers.normal())
    x = jnp.array(draw(3, 6))
    variables = layer.init(jax.random.key(0), x, train=True)
    got = quantized(name)(layer.apply)(variables, x, train=True)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    want = product_of_codes(name, "nc,cd->nd", jnp.tanh(x), kernel) + bias[None]
    np.testing.assert_array_equal(got, want)
    mlp = Mlp(8, dtype=jnp.bfloat16)
    variables = mlp.init(jax.random.key(0), x, train=True)
    assert quantized(name)(mlp.apply)(variables, x, train=True).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "platform", "kind", "capability", "has"),
    [
        ("fp8", "gpu", "NVIDIA A100", "8.0", False),
        ("fp8", "gpu", "NVIDIA L4", "8.9", True),
        ("fp8", "gpu", "NVIDIA H100", "9.0", True),
        ("fp8", "gpu", "NVIDIA B200", "10.0", True),
        ("fp8", "gpu", "AMD MI250", "gfx90a", False),
        ("fp8", "tpu", "TPU v5 lite", None, False),
        ("fp8", "tpu", "TPU v6 lite", None, False),
        ("fp8", "tpu", "TPU7x", None, True),
        ("fp8", "cpu", "cpu", None, False),
        ("int8", "gpu", "NVIDIA V100", "7.0", False),
        ("int8", "gpu", "NVIDIA A100", "8.0", True),
        ("int8", "tpu", "TPU v4", None, False),
        ("int8", "tpu", "TPU v5 lite", None, True),
        ("int8", "tpu", "TPU v6 lite", None, True),
        ("int8", "tpu", "TPU7x", None, False),
        ("int8", "cpu", "cpu", None, False),
    ],
)
def test_which_devices_multiply_codes_themselves(name, platform, kind, capability, has):
    fields = {} if capability is None else {"compute_capability": capability}
    device = SimpleNamespace(platform=platform, device_kind=kind, **fields)
    assert multiplies_codes(name, device) is has

"""What the families share, against float64 and against counts of compiled programs."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from vitswin_jax.nn.layers import LayerNorm
from vitswin_jax.nn.xla import gelu, store_gradient


def test_gelu_and_its_slope_are_those_of_the_normal_distribution():
    x = np.linspace(-12, 12, 4801)
    value, slope = jax.vmap(jax.value_and_grad(gelu))(jnp.float32(x))
    np.testing.assert_allclose(value, x * norm.cdf(x), atol=1e-6)
    np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=1e-6)


def test_gelu_keeps_its_tail_in_bfloat16():
    """Next to 1 bfloat16 resolves 0.008, and so 1 + erf would be 0 or 0.008 at -3: it is 0.0027."""
    x = jnp.asarray([-3.0, -2.0], jnp.bfloat16)
    value = gelu(x)
    assert value.dtype == jnp.bfloat16
    want = np.asarray([-3.0, -2.0]) * norm.cdf([-3.0, -2.0])
    np.testing.assert_allclose(value.astype(jnp.float32), want, rtol=0.01)


def test_storing_a_gradient_changes_no_number():
    x, t = jnp.asarray([1.5, -2.0, 0.0]), jnp.asarray([3.0, 1e-30, jnp.inf])
    value, tangent = jax.jit(lambda x, t: jax.jvp(store_gradient, (x,), (t,)))(x, t)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(tangent, t)
    (pulled,) = jax.jit(lambda x, t: jax.vjp(store_gradient, x)[1](t))(x, t)
    np.testing.assert_array_equal(pulled, t)


PROGRAM = """
import jax, jax.numpy as jnp
from vitswin_jax.nn.xla import store_gradient
def additions(depth, store):
    def loss(x, kernels):
        for kernel in kernels:
            y = x - x.mean(-1, keepdims=True)
            y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6)
            x = store(x + jax.nn.relu(y @ kernel) @ kernel.T)
        return x.sum()
    arguments = jnp.ones((32, 16)), [jnp.ones((16, 16))] * depth
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return program.as_text().count(" add(")
for store in (store_gradient, lambda x: x):
    print(additions(12, store) / additions(6, store))
"""


@pytest.mark.xla_behaviour
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is XLA's CPU backend that is held")
def test_programs_grow_with_the_depth_and_not_with_its_square():
    """Compiled as users do, with every pass; without `store_gradient` twice the depth is thrice."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    )
    stored, left_alone = map(float, done.stdout.split())
    assert stored < 2.2 < left_alone


def test_gelu_far_below_is_zero_and_no_nan():
    value, slope = jax.vmap(jax.value_and_grad(gelu))(jnp.asarray([-jnp.inf, -1e30, -19.0]))
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(slope[1:], 0.0)


def layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def directional(of, step):
    return (of(step) - of(-step)) / (2 * step)


def test_layer_norm_and_its_derivatives():
    """Against float64 and its differences: of a map, of parameters, forward over reverse."""
    rng = np.random.default_rng(0)
    x, dx, pull = (rng.normal(2.0, 1.0, size=(2, 3, 1, 5)) for _ in range(3))
    params, dparams = ({"scale": rng.normal(size=5), "bias": rng.normal(size=5)} for _ in range(2))
    point, direction = ((jax.tree.map(jnp.float32, tree)) for tree in ((params, x), (dparams, dx)))
    norm = LayerNorm(1e-6, jnp.float32)
    value = jax.jit(norm.apply)({"params": point[0]}, point[1])
    np.testing.assert_allclose(value, layer_norm(x, **params), atol=2e-6)

    def loss(params, x):
        return (norm.apply({"params": params}, x) * jnp.float32(pull)).sum()

    def exact(t, s=0.0):
        moved = jax.tree.map(lambda at, by: at + (t + s) * by, (params, x), (dparams, dx))
        return (layer_norm(moved[1], **moved[0]) * pull).sum()

    def dot(a, b):
        return sum(jax.tree.leaves(jax.tree.map(np.vdot, a, b)))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    want = directional(exact, 1e-5)
    np.testing.assert_allclose(dot(gradient(*point), direction), want, rtol=2e-5)
    np.testing.assert_allclose(jax.jvp(jax.jit(loss), point, direction)[1], want, rtol=2e-5)
    twice = directional(lambda s: directional(lambda t: exact(t, s), 1e-3), 1e-3)
    got = dot(jax.jvp(gradient, point, direction)[1], direction)
    np.testing.assert_allclose(got, twice, rtol=1e-3)


def test_layer_norm_of_bfloat16_computes_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(100.0, 1.0, (4, 64)), jnp.bfloat16)
    norm = LayerNorm(1e-6, jnp.bfloat16)
    got = norm.apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, x)
    assert got.dtype == jnp.bfloat16
    want = layer_norm(np.asarray(x, np.float64), 1.0, 0.0)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=1e-6)

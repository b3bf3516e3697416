"""Linear layers: an einsum's values and gradients, and what a program keeps for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax.nn.layers import Linear
from vitswin_jax.nn.mlp import ACTIVATIONS, Mlp
from vitswin_jax.nn.xla import gelu

CASES = [  # equation, shapes of the kernel and of the inputs, and of the bias in the output
    ("nc,cd->nd", (5, 7), (4, 5), (1, 7)),
    ("...nc,cthd->...nthd", (6, 3, 2, 3), (2, 4, 6), (1, 1, 3, 2, 3)),
    ("...nc,cthd->t...hnd", (6, 3, 2, 3), (2, 5, 4, 6), (3, 1, 1, 2, 1, 3)),
    ("...hnd,hdc->...nc", (2, 3, 6), (2, 2, 4, 3), (1, 1, 6)),
]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("equation", "kernel", "inputs", "bias"), mostly_long(CASES, CASES[1::2]))
@pytest.mark.parametrize("act", mostly_long([None, gelu, jnp.tanh], [gelu]))
def test_values_and_gradients_are_the_einsums(equation, kernel, inputs, bias, act):
    layer = Linear(kernel, equation, act)
    x = jnp.float32(draw(*inputs))
    init = functools.partial(layer.init, train=False)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0), x))
    assert shapes["params"] == {"kernel": kernel, "bias": tuple(n for n in bias if n > 1)}
    weights = {"kernel": draw(*kernel, seed=1), "bias": draw(*shapes["params"]["bias"], seed=2)}
    params = jax.tree.map(jnp.float32, weights)

    def plain(params, x):
        y = jnp.einsum(equation, x if act is None else act(x), params["kernel"])
        return y + params["bias"].reshape(bias)

    pull = jnp.float32(draw(*jax.eval_shape(plain, params, x).shape, seed=3))
    own = jax.value_and_grad(lambda *args: (plain(*args) * pull).sum(), argnums=(0, 1))
    want = jax.jit(own)(params, x)
    for train in (False, True):

        def loss(params, x, train=train):
            return (layer.apply({"params": params}, x, train=train) * pull).sum()

        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("train", [False, True])
def test_what_is_not_a_number_stays_none_and_infinity_harms_no_other_row(train):
    layer = Linear((3, 2), "nc,cd->nd", gelu, use_bias=False)
    params = {"kernel": jnp.ones((3, 2))}
    x = jnp.ones((4, 3)).at[0, 0].set(jnp.inf).at[1, 1].set(jnp.nan)
    y, transpose = jax.vjp(lambda x: layer.apply({"params": params}, x, train=train), x)
    assert np.isfinite(y[2:]).all()
    assert np.isinf(y[0]).all()
    assert np.isnan(y[1]).all()
    pull = jnp.full_like(y, jnp.inf).at[3].set(1.0)
    assert np.isfinite(transpose(pull)[0][3]).all()


def test_bfloat16_is_computed_and_parameters_are_float32():
    layer = Linear((5, 7), "nc,cd->nd", gelu, dtype=jnp.bfloat16)
    x = jnp.float32(draw(4, 5))
    variables = layer.init(jax.random.key(0), x, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    y, transpose = jax.vjp(lambda v: layer.apply(v, x, train=True), variables)
    assert y.dtype == jnp.bfloat16
    grads = transpose(jnp.ones_like(y))[0]["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def temporaries(step, *args):
    return jax.jit(step).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.xla_behaviour
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "quick_gelu"])
def test_of_an_mlp_a_program_keeps_the_input_and_the_hidden_layer_once(act):
    """Each of four MLPs more costs its input and what fc1 gives, and nothing else of that size."""
    n, c, hidden = 512, 32, 256
    mlp = Mlp(hidden, act)
    x = jnp.float32(draw(n, c))
    params = mlp.init(jax.random.key(0), x, train=True)

    def loss(layers, x):
        for layer in layers:
            x = mlp.apply(layer, x, train=True)
        return x.sum()

    few, many = (temporaries(jax.grad(loss), [params] * depth, x) for depth in (2, 6))
    kept = (many - few) / 4 / (4 * n)
    assert kept < (c + hidden) * 1.1, f"{kept} numbers a row"


@pytest.mark.parametrize("act", mostly_long(ACTIVATIONS, ["gelu", "swiglu"]))
def test_every_activation_trains_as_it_infers(act):
    """A gated one makes of fc1's numbers half as many."""
    mlp = Mlp(16, act)
    x = jnp.float32(draw(5, 6))
    variables = jax.jit(functools.partial(mlp.init, train=True))(jax.random.key(0), x)

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(variables, train):
        return (mlp.apply(variables, x, train=train) ** 2).sum()

    want, got = (loss(variables, train) for train in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_forward_mode_differentiates_inference():
    layer = Linear((5, 7), "nc,cd->nd", gelu, use_bias=False)
    kernel, x, dx = (
        jnp.float32(draw(5, 7)),
        jnp.float32(draw(4, 5)),
        jnp.float32(draw(4, 5, seed=1)),
    )
    _, got = jax.jvp(
        lambda x: layer.apply({"params": {"kernel": kernel}}, x, train=False), (x,), (dx,)
    )
    _, want = jax.jvp(lambda x: gelu(x) @ kernel, (x,), (dx,))
    np.testing.assert_allclose(got, want, rtol=1e-6)

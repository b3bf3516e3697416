"""Attention against a loop over queries in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax.nn.attention import attend
from vitswin_jax.nn.block import BlockOptions, SelfAttention
from vitswin_jax.nn.choices import LONG
from vitswin_jax.nn.xla import attend_in_cache


def naive(q, k, v, bias):
    """One query at a time: a softmax, and a weighted mean of the values."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for where in np.ndindex(q.shape[:-1]):
        logits = k[where[:-1]] @ q[where] + bias[where]
        weights = np.exp(logits - logits.max())
        out[where] = weights / weights.sum() @ v[where[:-1]]
    return out


@pytest.mark.parametrize("lead", [(2, 3), (2, 4, 3)])
def test_attend_is_softmax_attention(lead):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(*lead, 5, 4)) for _ in range(3))
    bias = 10 * rng.normal(size=(lead[-1], 5, 5))  # one a head
    got = attend(*(jnp.float32(x) for x in (q, k, v)), biases=(jnp.float32(bias),))
    want = naive(q, k, v, np.broadcast_to(bias, (*lead, 5, 5)))
    np.testing.assert_allclose(got, want, atol=2e-6)


LONGER = 1450
"""Tokens of which the logits of one head are more than 8 MB, so that queries are in two blocks."""


@pytest.mark.parametrize("shape", [(2, 2, LONG, 4), (1, 2, LONGER + 1, 4)])
def test_a_head_or_a_block_of_queries_at_a_time_is_the_same_attention(shape):
    """Values against the loop over queries, gradients against float64's, by its own derivative."""
    rng = np.random.default_rng(0)
    q, k, v, pull = (rng.normal(size=shape) for _ in range(4))

    def pulled(q, k, v):
        return (attend_in_cache(q, k, v) * jnp.float32(pull)).sum()

    single = [jnp.float32(x) for x in (q, k, v)]
    got = attend_in_cache(*single)
    np.testing.assert_allclose(got, naive(q, k, v, np.zeros((*shape[:-1], 1))), atol=2e-6)
    logits = q @ k.swapaxes(-1, -2)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_weights = pull @ v.swapaxes(-1, -2)
    of_logits = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))
    want = of_logits @ k, of_logits.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ pull
    for one, other in zip(jax.grad(pulled, argnums=(0, 1, 2))(*single), want, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    program = jax.jit(pulled).lower(*single).as_text()
    assert ("while" in program) == (jax.default_backend() == "cpu")


def test_huge_logits_do_not_overflow():
    q = jnp.full((1, 1, 2, 4), 1e3)
    assert np.isfinite(attend(q, q, q)).all()
    assert np.isfinite(jax.grad(lambda q: attend(q, q, q).sum())(q)).all()


def test_bfloat16_keeps_a_float32_softmax():
    """Many near-equal logits: a bfloat16 sum of 2048 weights would stop at 256."""
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    k = jnp.zeros((1, 1, 2048, 8), jnp.bfloat16)
    v = jnp.ones((1, 1, 2048, 8), jnp.bfloat16)
    out = attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0)


def test_each_projection_is_initialised_by_its_own_fans():
    """Xavier's bound for c -> c, not for c -> 3c, which a fused matrix would suggest."""
    attention = SelfAttention(num_heads=4)
    x = jnp.zeros((1, 2, 64))
    kernel = attention.init(jax.random.key(0), x, train=False)["params"]["qkv"]["kernel"]
    bound = (6 / (64 + 64)) ** 0.5
    assert 0.99 * bound < jnp.abs(kernel).max() <= bound


def test_attention_dropout_leaves_the_mean():
    rng = jax.random.key(0)
    x = jax.random.normal(rng, (1, 4, 16))
    attention = SelfAttention(num_heads=2, options=BlockOptions(attn_drop_rate=0.4))
    params = attention.init(rng, x, train=False)
    run = jax.jit(lambda k: attention.apply(params, x, train=True, rngs={"dropout": k}))
    outs = jax.vmap(run)(jax.random.split(rng, 4000))
    assert float(outs.std(0).min()) > 0.01
    np.testing.assert_allclose(outs.mean(0), attention.apply(params, x, train=False), atol=0.05)


def test_a_few_heads_at_a_time_take_any_number_of_examples():
    (b,) = jax.export.symbolic_shape("b")
    by_group = jax.jit(attend_in_cache)
    shape = jax.ShapeDtypeStruct((b, 2, LONG, 4), jnp.float32)
    exported = jax.export.export(by_group)(shape, shape, shape)
    x = jax.random.normal(jax.random.key(0), (3, 2, LONG, 4))
    np.testing.assert_allclose(exported.call(x, x, x), attend(x, x, x), atol=2e-6)


def weights_of(module, *inputs, **options):
    """Returns (output, what the module leaves where intermediates are asked for)."""
    variables = module.init(jax.random.key(0), *inputs, **options)
    assert set(variables) == {"params"}  # a fresh model keeps none
    out, state = module.apply(variables, *inputs, **options, mutable=["intermediates"])
    return variables, out, state["intermediates"]


def test_weights_that_are_asked_for_are_the_softmax():
    """Computed by hand in float64; and what the module returns is made of them."""
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    mask = np.tril(np.ones((1, 5, 5), bool))
    bias = jax.random.normal(jax.random.key(2), (2, 5, 5))
    variables, out, sown = weights_of(SelfAttention(2), x, mask, bias=bias, train=False)
    kernel = np.asarray(variables["params"]["qkv"]["kernel"], np.float64)
    q, k, v = np.einsum("bnc,cthd->tbhnd", np.asarray(x, np.float64), kernel)
    logits = np.einsum("bhqd,bhkd->bhqk", q, k) / 2 + np.asarray(bias) - 100.0 * ~mask[:, None]
    want = np.exp(logits - logits.max(-1, keepdims=True))
    want /= want.sum(-1, keepdims=True)
    (got,) = sown["attention"]
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(sown["position_bias"][0], bias)
    projected = np.einsum("bhqk,bhkd,hdc->bqc", want, v, variables["params"]["proj"]["kernel"])
    np.testing.assert_allclose(out, projected, atol=1e-5)


def test_ordinary_programs_form_no_weights():
    def exponentials(**options):
        program = jax.make_jaxpr(lambda v: attention.apply(v, x, train=False, **options))(variables)
        return str(program).count("= exp ")

    attention, x = SelfAttention(2), jnp.ones((1, 3, 8))
    variables = attention.init(jax.random.key(0), x, train=False)
    assert exponentials() == exponentials(mutable=["losses"]) == 1
    assert exponentials(mutable=["intermediates"]) == 2

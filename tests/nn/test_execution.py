"""Sequences that are padded for a kernel: lengths, values and gradients, without the kernel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn import choices, execution
from vitswin_jax.nn.attention import attend
from vitswin_jax.nn.execution import Execution, Sequences, flash
from vitswin_jax.nn.forms import PLATFORMS, traced_for


@pytest.mark.parametrize("tokens", mostly_long([196, 197, 257, 577], [197]))
def test_padded_attention_is_the_formula(tokens):
    """Whatever the tokens after the length hold; they get no gradient and give none."""
    rng = np.random.default_rng(tokens)
    q, k, v, pull = (jnp.asarray(rng.normal(size=(2, tokens, 2, 8)), jnp.float32) for _ in range(4))

    def plain(q, k, v):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(attend(q / 8**0.5, k, v), 1, 2)

    def padded(q, k, v):
        more = ((0, 0), (0, -tokens % 8), (0, 0), (0, 0))
        q, k, v = (jnp.pad(x, more, constant_values=7.0) for x in (q, k, v))
        return flash(q, k, v, tokens=tokens, implementation="xla")[:, :tokens]

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(attention):
        value, back = jax.vjp(attention, q, k, v)
        return value, *back(pull)

    with jax.default_matmul_precision("highest"):
        wanted, given = value_and_gradients(plain), value_and_gradients(padded)
        for got, want in zip(given, wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.fixture
def flash_here(monkeypatch):
    """Has this machine take cuDNN's way, with XLA's attention in cuDNN's place."""
    gpu = {"capability": 9.0, "cudnn": True, "triton": True}
    monkeypatch.setattr(choices, "_gpu", lambda: gpu)
    monkeypatch.setattr(execution, "flash", functools.partial(flash, implementation="xla"))
    monkeypatch.setattr(choices, "FLASH_DTYPES", ("float32",))
    monkeypatch.setattr(choices, "SHORT", 1)


FAMILIES = [
    {},
    {"scan": True},
    {"remat": "full"},
    {"pos_embed_at": "every"},
    {"pos_embed_at": "shared"},
    {"class_token": False, "global_pool": "map"},
    {"reg_tokens": 4, "global_pool": "token_avg", "init_values": 0.5},
    {"rope_type": "centred", "rope_rotate_half": True, "pos_embed": "none", "qkv_bias": "qv"},
    {"rope_type": "mixed", "qk_norm": True, "scale_attn_norm": True, "norm_layer": "rmsnorm"},
]


WAYS = [(fields, qkv) for fields in FAMILIES for qkv in ("joint", "apart")]
SHORT = [({}, "apart"), (FAMILIES[-1], "joint")]


@pytest.mark.parametrize(("fields", "qkv"), mostly_long(WAYS, SHORT))
def test_a_model_padded_once_has_its_numbers_and_gradients(flash_here, random_params, fields, qkv):
    model = create_model(
        "vit",
        img_size=20,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        **fields,
    )
    images = jax.random.normal(jax.random.key(0), (2, 20, 20, 3))
    params = random_params(model, images)

    def loss(params, images):
        out = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        return (out**2).sum(), out

    key = jax.random.key(1)
    want = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, images)
    with traced_for("gpu", dataclasses.replace(PLATFORMS["gpu"], qkv=qkv)):
        step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        got = jax.jit(step)(params, images)
        program = str(jax.make_jaxpr(lambda p: loss(p, images)[0])(params))
    tokens = model.grid[0] * model.grid[1] + model.num_prefix_tokens
    assert f"2,{tokens + -tokens % 8},16]" in program  # it did take that way
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()) + 1e-6)


@pytest.mark.long
def test_maps_and_weights_of_a_padded_model_have_no_padding(flash_here, random_params):
    model = create_model(
        "vit", img_size=20, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    images = jnp.ones((1, 20, 20, 3))
    params = {"params": random_params(model, images)}
    maps = functools.partial(model.apply, method="feature_maps")
    want = maps(params, images)
    with traced_for("gpu"):
        got = maps(params, images)
        _, sown = model.apply(params, images, mutable=["intermediates"])
    for one, other in zip(got, want, strict=True):
        assert one.shape == (1, 5, 5, 16)
        np.testing.assert_allclose(one, other, atol=1e-5)
    (weights,) = sown["intermediates"]["block_0"]["attn"]["attention"]
    assert weights.shape == (1, 2, 26, 26)


@pytest.mark.long
def test_parameters_are_the_same_on_every_platform():
    model = create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    images = jnp.zeros((1, 8, 8, 3))
    want = model.init(jax.random.key(0), images)
    with traced_for("gpu"):
        got = model.init(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_sequence_of_a_multiple_is_not_padded():
    x = jnp.ones((1, 16, 4))
    assert Sequences("cudnn", 16).pad(x) is x
    assert Sequences("cudnn", 16).cut(x) is x
    assert Sequences("xla", 15).pad(x) is x


def test_an_implementation_of_another_platform_is_one_line():
    model = create_model(
        "vit", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, attn_impl="cudnn"
    )
    images = jnp.zeros((1, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    with pytest.raises(UserError, match="attn_impl='cudnn' is for GPUs, and this is cpu"):
        jax.eval_shape(model.apply, variables, images)
    with traced_for("gpu"), pytest.raises(UserError, match="does not take other types"):
        jax.eval_shape(lambda v: model.apply(v, images), variables)


def test_a_plain_way_is_taken_where_weights_are_asked_for():
    cudnn = Execution("cudnn").sequences(
        plain=True, dtype="float32", tokens=5, head_dim=4, biased=False, dropout=False
    )
    assert cudnn == Sequences("xla", 5)


def test_long_sequences_go_a_few_heads_at_a_time_on_a_cpu(random_params):
    """518 tokens: the loop over groups of heads is in the program, and the numbers stay."""
    model = create_model(
        "vit",
        img_size=(44, 188),
        patch_size=4,
        embed_dim=8,
        depth=1,
        num_heads=2,
        num_classes=3,
        crop_to_patches=True,
    )
    images = jax.random.normal(jax.random.key(0), (1, 44, 188, 3))
    params = {"params": random_params(model, images)}
    auto = jax.jit(model.apply)
    program = auto.lower(params, images).as_text()
    assert ("while" in program) == (jax.default_backend() == "cpu")
    want = jax.jit(model.clone(attn_impl="xla").apply)(params, images)
    np.testing.assert_allclose(auto(params, images), want, atol=1e-5)

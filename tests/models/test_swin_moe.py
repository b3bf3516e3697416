"""Swin-MoE: routing token by token, the experts by hand, and that nothing leaks over images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitswin_jax import create_model
from vitswin_jax.models.blocks import stack_blocks
from vitswin_jax.models.swin_moe import MoeMlp, balance_loss, expert_capacity, route
from vitswin_jax.types import UserError

TINY = {
    "img_size": 16,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "pretrained_window_sizes": (0, 0),
    "moe_stages": (1,),
    "num_experts": 3,
    "num_classes": 5,
}


def random_images(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))


def probabilities(b, n, e):
    return jax.nn.softmax(random_images(b, n, e))


@pytest.mark.parametrize("capacity", [1, 2, 8])
def test_an_expert_takes_the_surest_tokens_up_to_its_capacity(capacity):
    p = probabilities(2, 8, 3)
    places = np.asarray(route(p, p, capacity=capacity))
    assert set(np.unique(places)) <= {0, 1}
    assert places.sum(1).max() == 1  # no place is given twice
    for image, given in zip(np.asarray(p), places, strict=True):
        for expert in range(3):
            candidates = [t for t in range(8) if image[t].argmax() == expert]
            candidates.sort(key=lambda t: -image[t, expert])
            taken = np.flatnonzero(given[:, expert].sum(-1))
            assert set(taken) == set(candidates[:capacity])


def test_the_noisy_choice_decides_and_the_probability_weighs():
    p = probabilities(1, 4, 3)
    choice = jnp.zeros_like(p).at[..., 2].set(1.0)
    places = route(p, choice, capacity=4)
    assert np.asarray(places).sum((0, 1, 3)).tolist() == [0, 0, 4]


def test_the_balance_loss_is_one_for_an_even_load_and_e_for_one_expert():
    even = jnp.tile(jnp.eye(4), (2, 3, 1))
    np.testing.assert_allclose(balance_loss(even, even), 1.0, rtol=1e-6)
    one = jnp.tile(jnp.eye(4)[:1], (2, 3, 1))
    np.testing.assert_allclose(balance_loss(one, one), 4.0, rtol=1e-6)


def test_capacity_is_rounded_up_and_never_more_than_the_tokens():
    assert expert_capacity(144, 32, capacity_factor=1.25) == 6
    assert expert_capacity(4, 32, capacity_factor=1.25) == 1
    assert expert_capacity(4, 1, capacity_factor=1.25) == 4


def moe(**fields):
    defaults = {
        "num_experts": 3,
        "hidden_dim": 7,
        "capacity_factor": 1.0,
        "gate_noise": 1.0,
        "act": "gelu",
        "drop_rate": 0.0,
        "use_out_bias": True,
        "kernel_init": jax.nn.initializers.zeros,
        "dtype": jnp.float32,
    }
    return MoeMlp(**defaults | fields)


def test_a_token_gets_its_experts_output_times_its_probability_or_nothing(random_params, apply):
    layer, x = moe(), random_images(2, 2, 3, 4)
    params = jax.tree.map(np.asarray, random_params(layer, x, train=False))
    got = np.asarray(apply(layer, params, x, train=False)).reshape(2, 6, 4)
    for tokens, outputs in zip(np.asarray(x).reshape(2, 6, 4), got, strict=True):
        p = np.exp(tokens @ params["router"]["kernel"])
        p /= p.sum(-1, keepdims=True)
        for expert in range(3):
            chosen = [t for t in range(6) if p[t].argmax() == expert]
            chosen.sort(key=lambda t: -p[t, expert])
            for rank, t in enumerate(chosen):
                hidden = tokens[t] @ params["fc1_kernel"][expert] + params["fc1_bias"][expert]
                hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
                out = hidden @ params["fc2_kernel"][expert] + params["fc2_bias"][expert]
                want = p[t, expert] * out if rank < 2 else np.zeros(4)  # 1.0 * 6 / 3 places
                np.testing.assert_allclose(outputs[t], want, rtol=1e-4, atol=1e-5)


def test_an_images_logits_do_not_depend_on_the_others(random_params):
    model, images = create_model("swin_moe", **TINY), random_images(3, 16, 16, 3)
    params = random_params(model, images)
    run = jax.jit(model.apply)
    alone = np.concatenate([run({"params": params}, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(run({"params": params}, images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_losses_are_sown_once_a_block_with_experts_and_only_where_asked_for(random_params, scan):
    fields = TINY | {"depths": (2, 4)}
    model, images = create_model("swin_moe", **fields, scan=scan), random_images(2, 16, 16, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert set(shapes) == {"params"}
    params = random_params(model, images)

    @jax.jit
    def run(params, key):
        return model.apply(
            {"params": params}, images, train=True, rngs={"dropout": key}, mutable=["losses"]
        )

    _, state = run(params, jax.random.key(0))
    losses = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state["losses"])])
    assert losses.shape == (2,)
    assert ((losses > 0) & (losses <= 3)).all()


def test_scan_equals_loop_and_the_router_learns(random_params):
    model, images = create_model("swin_moe", **TINY), random_images(2, 16, 16, 3)
    scanned = create_model("swin_moe", **TINY, scan=True)
    params = random_params(model, images)

    def gradients(model, params):
        return jax.jit(jax.grad(lambda p: (model.apply({"params": p}, images) ** 2).sum()))(params)

    want = stack_blocks(gradients(model, params))
    got = gradients(scanned, stack_blocks(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), got, want)
    assert np.abs(got["stage_1"]["pairs"]["block_1"]["mlp"]["router"]["kernel"]).max() > 0


def test_misfits_are_listed():
    with pytest.raises(UserError, match=r"num_experts must be at least 1.*moe_stages=\(5,\)"):
        create_model("swin_moe", **TINY | {"num_experts": 0, "moe_stages": (5,)})

"""Swin-MoE: routing token by token, the experts by hand, and that nothing leaks over images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.models.swin_moe import (
    MoeMlp,
    expert_capacity,
    gshard_loss,
    load_importance_loss,
    route,
)
from vitswin_jax.nn.scan import stack_blocks

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
    places = np.asarray(route(p, capacity=capacity))
    assert set(np.unique(places)) <= {0, 1}
    assert places.sum(1).max() == 1  # no place is given twice
    for image, given in zip(np.asarray(p), places, strict=True):
        for expert in range(3):
            candidates = [t for t in range(8) if image[t].argmax() == expert]
            candidates.sort(key=lambda t: -image[t, expert])
            taken = np.flatnonzero(given[:, expert].sum(-1))
            assert set(taken) == set(candidates[:capacity])


def test_the_balance_losses_are_tutels():
    """The numbers are of tutel/impls/losses.py in float64, for what NumPy draws here."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 4))
    noisy = logits + 0.25 * rng.standard_normal((6, 4))
    logits, noisy = (jnp.asarray(x[None], jnp.float32) for x in (logits, noisy))
    loss = load_importance_loss(logits, noisy, noise=1.0 / 4)
    np.testing.assert_allclose(loss, 0.0623854398727417, rtol=1e-5)
    np.testing.assert_allclose(gshard_loss(jax.nn.softmax(noisy)), 1.1588080381568624, rtol=1e-5)


def test_gshards_loss_is_one_for_an_even_load_and_e_for_one_expert():
    even = jnp.tile(jnp.eye(4), (2, 3, 1))
    np.testing.assert_allclose(gshard_loss(even), 1.0, rtol=1e-6)
    one = jnp.tile(jnp.eye(4)[:1], (2, 3, 1))
    np.testing.assert_allclose(gshard_loss(one), 4.0, rtol=1e-6)


def test_capacity_is_of_an_even_load_rounded_up_then_down():
    assert expert_capacity(144, 32, capacity_factor=1.25) == 6  # 1.25 * 5
    assert expert_capacity(145, 16, capacity_factor=1.25) == 12  # 1.25 * 10
    assert expert_capacity(4, 32, capacity_factor=0.5) == 1  # never none


def moe(**fields):
    defaults = {
        "num_experts": 3,
        "hidden_dim": 7,
        "capacity_factor": 1.0,
        "capacity_over": "image",
        "router": "linear",
        "balance": "gshard",
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


def test_over_a_batch_the_surest_of_all_images_are_taken(random_params, apply):
    layer, x = moe(capacity_over="batch"), random_images(2, 2, 3, 4)
    params = random_params(layer, x, train=False)
    whole = apply(moe(), params, x.reshape(1, 4, 3, 4), train=False)
    np.testing.assert_allclose(apply(layer, params, x, train=False).ravel(), whole.ravel())


def test_an_images_logits_do_not_depend_on_the_others(random_params):
    model, images = create_model("swin_moe", **TINY), random_images(3, 16, 16, 3)
    params = random_params(model, images)
    run = jax.jit(model.apply)
    alone = np.concatenate([run({"params": params}, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(run({"params": params}, images), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", mostly_long([False, True], [True]))
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
    assert (losses > 0).all()


@pytest.mark.long
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
    wrong = {"num_experts": 0, "moe_stages": (5,), "router": "round", "gate_noise": 0.0}
    message = r"num_experts must be at least 1.*router='round'.*gate_noise above 0.*\(5,\)"
    with pytest.raises(UserError, match=message):
        create_model("swin_moe", **TINY | wrong)

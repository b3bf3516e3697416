"""Each rule against its formula or its original; clipping; what is frozen; stacks as loops."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long
from optax.contrib import MuonDimensionNumbers

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.scan import stack_blocks, unstack_blocks
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.optimizers import OPTIMIZERS, Optimizer, make_optim, make_tx
from vitswin_jax.train.sharding import create_mesh, state_shardings


def test_adamw_is_the_paper_formula():
    """Two steps in plain numpy; the decay is decoupled and scaled by the rate."""
    lr, decay, b1, b2, eps = 0.1, 0.5, 0.9, 0.999, 1e-8
    tx = make_tx(lambda step: lr, name="adamw", weight_decay=decay)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([1.0])}
    state = tx.init({"head": params})
    want = {key: np.asarray(value, np.float64) for key, value in params.items()}
    m, v = dict.fromkeys(want, 0.0), dict.fromkeys(want, 0.0)
    for t, scale in ((1, 1.0), (2, -3.0)):
        grads = {"kernel": jnp.array([0.3, 0.1]) * scale, "bias": jnp.array([0.2]) * scale}
        updates, state = tx.update({"head": grads}, state, {"head": params})
        params = jax.tree.map(jnp.add, params, updates["head"])
        for key, value in want.items():
            g = np.asarray(grads[key], np.float64)
            m[key], v[key] = b1 * m[key] + (1 - b1) * g, b2 * v[key] + (1 - b2) * g**2
            step = (m[key] / (1 - b1**t)) / (np.sqrt(v[key] / (1 - b2**t)) + eps)
            want[key] = value - lr * (step + decay * value * (key == "kernel"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, want)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_couples_its_decay_as_pytorch_does(nesterov):
    tx = make_tx(lambda step: 0.1, name="sgd", weight_decay=0.5, momentum=0.9, nesterov=nesterov)
    params, want, velocity = {"head": {"kernel": jnp.array([2.0])}}, 2.0, 0.0
    state = tx.init(params)
    for g in (0.3, -0.2, 0.5):
        updates, state = tx.update({"head": {"kernel": jnp.array([g])}}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        decayed = g + 0.5 * want
        velocity = 0.9 * velocity + decayed
        want -= 0.1 * (decayed + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(params["head"]["kernel"], want, rtol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    tx = make_tx(lambda step: 1.0, name="sgd", momentum=0.0, max_grad_norm=1.0)
    params = {"a": {"kernel": jnp.zeros(2)}, "b": {"kernel": jnp.zeros(1)}}
    grads = {"a": {"kernel": jnp.array([3.0, 0.0])}, "b": {"kernel": jnp.array([4.0])}}
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["kernel"], [-0.8], rtol=1e-6)


SHAPES = {
    "patch_embed/proj/kernel": (2, 2, 3, 36),
    "block_0/attn/qkv/kernel": (36, 3, 2, 33),
    "block_0/attn/proj/kernel": (2, 33, 36),
    "block_0/mlp/fc1/kernel": (36, 40),
    "block_0/mlp/fc1/bias": (40,),
    "head/kernel": (36, 5),
    "head/bias": (5,),
}
SHAPES |= {key.replace("_0", "_1"): shape for key, shape in SHAPES.items()}


def make_tree(seed, shapes=SHAPES, *, scale=1.0):
    rng = np.random.default_rng(seed)
    flat = {key: scale * rng.standard_normal(shape) for key, shape in shapes.items()}
    return unflatten_dict(jax.tree.map(jnp.float32, flat), sep="/")


def run(tx, params, *, steps=4, layout=lambda tree: tree):
    """The parameters after some steps, each with gradients of its own size."""
    params, update = layout(params), jax.jit(tx.update)
    state = tx.init(params)
    for step in range(steps):
        grads = layout(make_tree(100 + step, scale=0.1 * (step + 1)))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def decays(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # all of SHAPES but biases


def qkv_as_matrices(params):
    """Hidden matrices, each of q, k and v separately; None for the embedding and the head."""
    axes = {
        "qkv": MuonDimensionNumbers((0,), (2, 3)),
        "proj": MuonDimensionNumbers((0, 1), (2,)),
        "fc1": MuonDimensionNumbers((0,), (1,)),
    }
    flat = flatten_dict(params)
    numbers = {
        path: axes[path[-2]] if path[0].startswith("block") and path[-1] == "kernel" else None
        for path in flat
    }
    return unflatten_dict(numbers)


def optax_muon(rate):
    """optax's decays by two numbers, and all that is no matrix; so: none, and ours is added."""
    return optax.contrib.muon(rate, muon_weight_dimension_numbers=qkv_as_matrices)


@pytest.mark.parametrize(
    ("name", "theirs", "weight_decay"),
    [
        ("lamb", lambda rate: optax.lamb(rate, weight_decay=0.1, mask=decays), 0.1),
        ("lion", lambda rate: optax.lion(rate, weight_decay=0.1, mask=decays), 0.1),
        ("adamw", lambda rate: optax.adamw(rate, weight_decay=0.1, mask=decays), 0.1),
        ("muon", optax_muon, 0.0),
    ],
)
def test_a_rule_with_its_defaults_is_optaxs(name, theirs, weight_decay):
    rate = optax.linear_schedule(0.1, 0.02, 4)
    params = make_tree(0)
    got, _ = run(make_tx(rate, name=name, weight_decay=weight_decay), params)
    want, _ = run(theirs(rate), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_muon_decays_kernels_by_the_rate():
    tx = make_tx(lambda step: 0.1, name="muon", weight_decay=0.5)
    params = make_tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    for path, update in flatten_dict(updates).items():
        value = flatten_dict(params)[path]
        np.testing.assert_allclose(
            update, -0.05 * value if path[-1] == "kernel" else 0 * value, atol=1e-6
        )


@pytest.mark.parametrize("name", ["adafactor", "adam"])
def test_big_visions_are_big_visions_own(name):
    """Eight steps of their `make`: clipping, multipliers, a schedule with warmup and cooldown.

    Their decay follows the schedule alone: neither the rate nor its multipliers change it.
    """
    with np.load(Path(__file__).parents[2] / "goldens" / "train" / "big_vision.npz") as arrays:
        want = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(name)}
    shapes = {key: value.shape for key, value in want.items()}

    def tree(prefix):
        flat = {key: parity.make_array(prefix + key, shape) for key, shape in shapes.items()}
        return unflatten_dict(flat, sep="/")

    own = {"momentum_dtype": "bfloat16", "b2": 0.95} if name == "adam" else {}
    counts = {"warmup_steps": 2, "cooldown_steps": 3, "total_steps": 8, "timescale_steps": 3}
    section = {
        "name": f"big_vision_{name}",
        "schedule": "rsqrt",
        "peak_lr": 8e-3,
        "weight_decay": 1e-3,
        "max_grad_norm": 1.0,
        "decay_mults": ((".*head/kernel", 100.0),),
        "lr_mults": (("head/.*", 0.5),),
        "freeze": ("pos_embed",),
    }
    tx, params = make_optim(section | counts | own).tx, tree("param/")
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(8):
        updates, state = update(tree(f"grad {step}/"), state, params)
        params = optax.apply_updates(params, updates)
    for key, value in flatten_dict(params, sep="/").items():
        np.testing.assert_allclose(value, want[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", mostly_long(OPTIMIZERS, ["adamw", "muon"]))
def test_stacked_blocks_are_updated_as_blocks_in_a_loop(name):
    """Rules that look at whole arrays (norms, factors, matrices) look at each block's."""
    groups = Groups(layer_decay=0.8, lr_mults=(("block_1/.*", 3.0),))
    optim = {"name": name, "weight_decay": 0.1, "max_grad_norm": 1.0, "groups": groups}
    optim["momentum_dtype"] = "float32"  # a last bit's difference may be a step of bfloat16's
    tx, params = make_tx(lambda step: 0.1, peak_lr=0.1, **optim), make_tree(0)
    loop, _ = run(tx, params)
    scan, _ = run(tx, params, layout=stack_blocks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
        loop,
        unstack_blocks(scan),
    )


def test_a_deep_stack_of_vectors_is_no_matrix_to_adafactor():
    """33 biases of 40, stacked, are long enough both ways to be kept as a row and a column."""
    shapes = {"patch_embed/bias": (40,)} | {f"block_{i}/bias": (40,) for i in range(33)}
    tx = make_tx(lambda step: 0.1, name="big_vision_adafactor")
    grads, out = make_tree(1, shapes), []
    for layout in (lambda tree: tree, stack_blocks):
        params = layout(make_tree(0, shapes))
        updates, _ = jax.jit(tx.update)(layout(grads), tx.init(params), params)
        out.append(unstack_blocks(updates))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *out)


@pytest.mark.parametrize("name", mostly_long(OPTIMIZERS, ["adamw", "muon"]))
def test_what_is_frozen_stays_and_costs_nothing(name):
    """Bit for bit, without state, and without a share in the clipped norm."""
    groups = Groups(train_only=("(head|block_1)/.*",))
    optim = {"name": name, "weight_decay": 0.1, "max_grad_norm": 0.5, "peak_lr": 0.1}
    params = make_tree(0)
    got, state = run(make_tx(lambda step: 0.1, groups=groups, **optim), params)
    trains = {path: path[0] in ("head", "block_1") for path in flatten_dict(params)}
    alone = {path: leaf for path, leaf in flatten_dict(params).items() if trains[path]}
    for path, leaf in flatten_dict(params).items():
        assert np.array_equal(flatten_dict(got)[path], leaf) != trains[path], path

    def keep(tree):
        return unflatten_dict({p: x for p, x in flatten_dict(tree).items() if trains[p]})

    want, want_state = run(make_tx(lambda step: 0.1, **optim), params, layout=keep)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), keep(got), want
    )
    assert len(alone) < len(flatten_dict(params))
    assert sum(x.size for x in jax.tree.leaves(state)) == sum(
        x.size for x in jax.tree.leaves(want_state)
    )


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("adamw", {"float32", "int32"}),
        ("big_vision_adafactor", {"float32", "bfloat16", "int32"}),
        ("sgd", {"int32", "float32"}),
    ],
)
def test_the_first_moment_has_the_dtype_that_is_asked(name, dtypes):
    params = make_tree(0)

    def kinds(**own):
        state = make_tx(lambda step: 0.1, name=name, **own).init(params)
        return {str(leaf.dtype) for leaf in jax.tree.leaves(state)}

    assert kinds() == dtypes
    assert "bfloat16" in kinds(momentum_dtype="bfloat16")
    assert "bfloat16" not in kinds(momentum_dtype="float32")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "adamv"}, r"optim.name='adamv' .*did you mean 'adamw'"),
        (
            {"name": "adamw", "momentum": 0.9, "nesterov": True},
            r"optim.name='adamw' does not read optim.momentum=0.9, optim.nesterov=True; of such "
            r"keys it reads b1, b2, eps, momentum_dtype\.",
        ),
        (
            {"momentum_dtype": "bf16"},
            r"optim.momentum_dtype='bf16' must be one of float32, bfloat16",
        ),
        (
            {"weight_decay": -0.1, "max_grad_norm": 0.0},
            "optim.weight_decay=-0.1 must be 0 or more; optim.max_grad_norm=0.0 must be above 0",
        ),
        ({"name": "big_vision_adam", "weight_decay": 0.1}, "needs a peak_lr above 0"),
    ],
)
def test_what_is_unknown_or_unread_is_said(keys, message):
    with pytest.raises(UserError, match=message):
        make_tx(lambda step: 0.1, **keys)


def test_a_pattern_that_matches_nothing_raises_before_there_is_a_state():
    tx = make_tx(lambda step: 0.1, groups=Groups(freeze=("haed/.*",)))
    with pytest.raises(UserError, match=r"matches no parameter; the nearest are head/"):
        tx.init(make_tree(0))


def test_a_new_optimizer_is_one_function_and_one_row(monkeypatch):
    """One without `momentum_dtype`, and with scalars of its own in its state."""

    def rule(*, b2=0.5):
        def update(grads, state, params=None):
            del params
            return jax.tree.map(lambda g: g * b2 * state["warmth"], grads), state

        return optax.GradientTransformation(lambda params: {"warmth": jnp.float32(2.0)}, update)

    monkeypatch.setitem(OPTIMIZERS, "ours", Optimizer(rule, "rate"))
    tx = make_tx(lambda step: 0.1, name="ours", b2=0.25)
    params = {"head": {"kernel": jnp.array([4.0])}}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * 4.0 * 0.25 * 2.0, rtol=1e-6)
    state = {"params": params, "opt_state": tx.init(params), "step": jnp.int32(0)}
    layout = state_shardings(create_mesh(), state)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(layout["opt_state"]))

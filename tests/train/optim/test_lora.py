"""Adapters: the same model at first, low-rank changes beside kernels, and nothing else trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.scan import stack_blocks, unstack_blocks
from vitswin_jax.train.optim.groups import Groups
from vitswin_jax.train.optim.lora import Lora, add_lora, join, merge_lora, model_params, split
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.sharding import create_mesh, shard_batch
from vitswin_jax.train.state import create_state, describe_trained, make_weights, state_layout
from vitswin_jax.train.step import StepOptions, make_train_step

MODELS = {
    "vit": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin": {
        "img_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": (2, 1),
        "num_heads": (2, 2),
        "window_size": 4,
    },
    "swinv2": {
        "img_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 4,
        "pretrained_window_sizes": (0, 0),
    },
}
KERNELS = r"(.*/)?(attn/(qkv|proj)|mlp/fc[12])/kernel"
LORA = Lora(rank=2, alpha=6.0, kernels=KERNELS, train=r"head/.*")


@functools.cache
def make(family, *, scan=False):
    """A model's parameters, with fresh adapters, and with adapters whose B is not zero any more."""
    model = create_model(family, num_classes=5, scan=scan, **MODELS[family])
    images = jnp.zeros((1, model.img_size, model.img_size, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    adapted = jax.jit(functools.partial(add_lora, lora=LORA))(params, key=jax.random.key(1))
    rng = np.random.default_rng(0)
    moved = {
        path: leaf + (path[-1] == "lora_b") * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(jax.device_get(adapted)).items()
    }
    return params, adapted, unflatten_dict(moved)


WAYS = [("vit", False), ("swin", True), ("vit", True), ("swinv2", False)]


@pytest.mark.parametrize(("family", "scan"), mostly_long(WAYS, WAYS[1:2]))
def test_fresh_adapters_change_no_bit(family, scan):
    params, adapted, _ = make(family, scan=scan)
    merged = merge_lora(adapted, LORA)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    added = flatten_dict(adapted, sep="/").keys() - flatten_dict(params, sep="/").keys()
    kernels = {path.rpartition("/")[0] for path in added}
    assert len(added) == 2 * len(kernels)
    assert all(stem.endswith(("qkv", "proj", "fc1", "fc2")) for stem in kernels)
    assert not any("cpb_mlp" in stem or "patch_embed" in stem for stem in kernels)
    draws = [leaf for path, leaf in flatten_dict(adapted).items() if path[-1] == "lora_a"]
    assert all(float(jnp.abs(a).min()) > 0 for a in draws)


def test_the_merged_model_computes_what_an_adapter_beside_each_kernel_does():
    """The oracle adds α / r (x A) B to the output of each layer, kernels as they were."""
    _, _, moved = make("vit")
    merged, block = merge_lora(moved, LORA)["block_1"], moved["block_1"]
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    for layer in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1")):
        one = functools.reduce(dict.__getitem__, layer, block)
        kernel, a, b = (np.asarray(one[key], np.float64) for key in ("kernel", "lora_a", "lora_b"))
        inputs = int(np.prod(a.shape[:-1]))
        a, b = a.reshape(inputs, 2), b.reshape(2, -1)
        want = x @ kernel.reshape(inputs, -1) + 3.0 * (x @ a) @ b
        got = functools.reduce(dict.__getitem__, layer, merged)["kernel"]
        np.testing.assert_allclose(x @ np.asarray(got).reshape(inputs, -1), want, atol=1e-4)


def test_scan_layout_is_the_loops():
    """Adapters are stacked and unstacked as kernels are, and merge to the same."""
    _, _, moved = make("vit")
    stacked = merge_lora(stack_blocks(moved), LORA)
    loop = merge_lora(moved, LORA)
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), loop)


def test_split_and_join_lose_nothing():
    _, adapted, _ = make("vit")
    trained, frozen = split(adapted, LORA)
    paths = set(flatten_dict(trained, sep="/"))
    assert {"head/kernel", "head/bias", "block_0/attn/qkv/lora_a"} <= paths
    assert all(path.startswith("head/") or "/lora_" in path for path in paths)
    assert not paths & set(flatten_dict(frozen, sep="/"))
    jax.tree.map(np.testing.assert_array_equal, join(trained, frozen), adapted)
    whole, nothing = split(adapted, None)
    assert whole is adapted and model_params(whole, nothing, None) is adapted


def test_a_step_trains_adapters_and_head_alone():
    """And the optimizer keeps nothing for the rest: AdamW two moments for what is trained."""
    model = create_model("vit", num_classes=5, scan=True, **MODELS["vit"])
    mesh, tx = create_mesh(devices=jax.devices()[:2]), make_tx(lambda step: 0.1, weight_decay=0.1)
    shape = {"image_shape": (8, 8, 3), "mesh": mesh, "lora": LORA}
    state, shardings = create_state(model, tx, jax.random.key(0), **shape)
    before = jax.device_get(state)
    step = make_train_step(
        model, tx, options=StepOptions(lora=LORA), mesh=mesh, shardings=shardings
    )
    rng = np.random.default_rng(0)
    for _ in range(2):  # B is zero before the first, so A has a gradient only from the second on
        batch = {
            "image": rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
            "label": np.arange(8, dtype=np.int32) % 5,
            "mask": np.ones(8, np.float32),
        }
        state, _ = step(state, shard_batch(batch, mesh), jax.random.key(0))
    weights, own = make_weights(lora=LORA, average=False, param_shardings=shardings.params)
    merged = jax.device_get(weights(state))
    after = jax.device_get(state)
    was, now = (flatten_dict(s.params, sep="/") for s in (before, after))
    trained = {path for path in was if "/lora_" in path or path.startswith("head/")}
    for path, leaf in was.items():
        assert (path in trained) == bool((leaf != now[path]).any()), path
    count = sum(was[path].size for path in trained)
    layout = state_layout(model, tx, **shape)
    assert f"trains {count:,} of {sum(leaf.size for leaf in was.values()):,} parameters" in (
        describe_trained(layout, lora=LORA, groups=Groups())
    )
    moments = sum(leaf.size for leaf in jax.tree.leaves(before.opt_state) if leaf.ndim)
    assert moments == 2 * count
    want = flatten_dict(merge_lora(after.params, LORA), sep="/")
    assert flatten_dict(merged, sep="/").keys() == flatten_dict(own, sep="/").keys() == want.keys()
    for path, leaf in flatten_dict(merged, sep="/").items():
        np.testing.assert_allclose(leaf, want[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0, "alpha": -1.0, "kernels": "("}, r"rank=0 .*alpha=-1.0 .*kernels='\(' is no"),
        (
            {"kernels": "blocks/.*"},
            "kernels='blocks/.*' matches no parameter; parameters are block_0/",
        ),
        (
            {"kernels": ".*patch_embed.*"},
            "matches patch_embed/proj/bias, .* which cannot have adapters",
        ),
        ({"train": "haed/.*"}, "lora.train='haed/.*' matches no parameter"),
    ],
)
def test_what_fits_nothing_is_said(fields, message):
    params, _, _ = make("vit")
    with pytest.raises(UserError, match=message):
        given = {"rank": 2, "alpha": 6.0, "kernels": KERNELS, "train": "head/.*"} | fields
        add_lora(params, Lora(**given), jax.random.key(0))

"""The step on one device and on eight, in one piece and in parts; what it may depend on."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.evaluate.step import eval_step
from vitswin_jax.nn.batch import normalize
from vitswin_jax.train.optim.optimizers import make_schedule, make_tx
from vitswin_jax.train.sharding import create_mesh, shard_batch
from vitswin_jax.train.state import create_state
from vitswin_jax.train.step import StepOptions, compile_for_hosts, make_train_step
from vitswin_jax.train.task.losses import Loss, make_loss
from vitswin_jax.train.task.mixing import Mixing
from vitswin_jax.train.task.supervised import Supervised

MODELS = {
    "vit": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "swin": {
        "img_size": 16,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": (2, 1),
        "num_heads": (2, 2),
        "window_size": 4,
        "init_std": 0.2,
    },
}
MOE = {
    "depths": (2, 2),
    "moe_stages": (1,),
    "pretrained_window_sizes": (0, 0),
    "num_experts": 2,
    "gate_noise": 0.0,
    "balance": "gshard",
    "img_size": 16,
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def make_batches(size, count=3, rows=16):
    """Batches of random uint8 images; the last has rows that are padding."""
    rng = np.random.default_rng(0)
    for i in range(count):
        mask = np.ones(rows, np.float32)
        mask[rows - i :] = 0
        yield {
            "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
            "label": rng.integers(0, 5, rows).astype(np.int32),
            "mask": mask,
        }


def compile_eval_step(model, mesh, param_shardings):
    step = functools.partial(eval_step, model=model, mean=MEAN, std=STD)
    return compile_for_hosts(step, mesh=mesh, param_shardings=param_shardings)


def run(family, *, devices, mesh=None, tx="sgd", fields=None, **options):
    """Three steps; returns the losses, the parameters and the logits after them."""
    model = create_model(family, num_classes=5, **MODELS[family], **(fields or {}))
    mesh = create_mesh(devices=jax.devices()[:devices], **(mesh or {}))
    optimizer = make_tx(
        make_schedule(schedule="constant", peak_lr=0.1 if tx == "sgd" else 1e-3, total_steps=3),
        name=tx,
        max_grad_norm=1.0,
    )
    shape = (model.img_size, model.img_size, 3)
    key = jax.random.key(0)
    state, shardings = create_state(model, optimizer, key, image_shape=shape, mesh=mesh)
    step = make_train_step(
        model,
        optimizer,
        options=StepOptions(mean=MEAN, std=STD, **options),
        mesh=mesh,
        shardings=shardings,
    )
    losses = []
    for batch in make_batches(model.img_size):
        state, metrics = step(state, shard_batch(batch, mesh), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    predict = compile_eval_step(model, mesh, shardings.params)
    out = predict(state.params, shard_batch(batch, mesh))
    return np.array(losses), jax.device_get(state.params), jax.device_get(out)


@pytest.mark.long
@pytest.mark.parametrize("family", ["vit", pytest.param("swin", marks=pytest.mark.long)])
def test_eight_devices_give_what_one_gives(family):
    """With dropout, stochastic depth and mixing on: chance does not depend on the devices."""
    fields = {"drop_rate": 0.1, "drop_path_rate": 0.2}
    mixing = Mixing(mixup_alpha=0.5, cutmix_alpha=1.0, label_smoothing=0.1)
    one, eight = (run(family, devices=n, fields=fields, task=Supervised(mixing)) for n in (1, 8))
    np.testing.assert_allclose(one[0], eight[0], atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one[1], eight[1])
    np.testing.assert_allclose(one[2]["logits"], eight[2]["logits"], atol=1e-5)


@pytest.mark.long
def test_eight_devices_give_what_one_gives_with_adamw():
    """But for the key third of qkv biases, whose gradient is rounding that Adam blows up."""
    one = run("vit", devices=1, tx="adamw")
    eight = run("vit", devices=8, mesh={"fsdp": 2, "tensor": 2}, tx="adamw")
    np.testing.assert_allclose(one[0], eight[0], atol=1e-5)
    for params in (one[1], eight[1]):
        for block in ("block_0", "block_1"):
            bias = params[block]["attn"]["qkv"]["bias"]
            params[block]["attn"]["qkv"]["bias"] = np.delete(bias, 1, axis=0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one[1], eight[1])


@pytest.mark.long
@pytest.mark.parametrize("quantize", ["fp8", "int8"])
def test_eight_devices_quantise_as_one_does(quantize):
    """A scale is of a whole row, wherever its parts lie. Sums of another order change few codes."""
    mesh = {"fsdp": 2, "tensor": 2}
    one = run("vit", devices=1, quantize=quantize)
    eight = run("vit", devices=8, mesh=mesh, quantize=quantize)
    apart = np.abs(one[0] - run("vit", devices=1)[0]).max()
    assert np.abs(one[0] - eight[0]).max() < 0.1 * apart


@pytest.mark.long
@pytest.mark.parametrize(
    ("devices", "mesh"), mostly_long([(1, {}), (4, {"fsdp": 2})], [(4, {"fsdp": 2})])
)
def test_accumulated_parts_equal_the_whole_batch(devices, mesh):
    """Padding rows included: parts weigh what they hold, not one over their number."""
    whole, parts = (run("vit", devices=devices, mesh=mesh, accum_steps=n) for n in (1, 4))
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), whole[1], parts[1])


@pytest.mark.xla_behaviour
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_a_new_kernel_is_written_over_the_old_one(family):
    """XLA copies a kernel where it cannot tell that the optimizer comes after its last reader."""
    model = create_model(family, num_classes=5, **MODELS[family])
    mesh = create_mesh(data=1, devices=jax.devices()[:1])
    tx = make_tx(make_schedule(schedule="constant", peak_lr=1e-3, total_steps=3), name="adamw")
    shape = (model.img_size, model.img_size, 3)
    state, shardings = create_state(model, tx, jax.random.key(0), image_shape=shape, mesh=mesh)
    step = make_train_step(model, tx, options=StepOptions(), mesh=mesh, shardings=shardings)
    batch = shard_batch(next(make_batches(model.img_size)), mesh)
    program = step.lower(state, batch, jax.random.key(1)).compile().as_text()
    assert "attn____proj____kernel" in program
    assert not re.findall(r"copy\(%(state_params\w*(?:qkv|proj|fc1|fc2)____kernel\w*)", program)


def test_padding_rows_change_nothing():
    model = create_model("vit", num_classes=5, **MODELS["vit"])
    batch = next(make_batches(8))
    mesh = create_mesh(data=1)
    tx = make_tx(lambda step: 0.1, name="sgd")
    state, shardings = create_state(model, tx, jax.random.key(0), image_shape=(8, 8, 3), mesh=mesh)
    step = make_train_step(model, tx, options=StepOptions(), mesh=mesh, shardings=shardings)
    results = []
    for noise in (0, 1):
        rng = np.random.default_rng(noise)
        image = batch["image"].copy()
        image[12:] = rng.integers(0, 256, image[12:].shape)
        mask = np.repeat([1.0, 0.0], [12, 4]).astype(np.float32)
        start = jax.tree.map(jnp.array, state)
        after, metrics = step(start, {**batch, "image": image, "mask": mask}, jax.random.key(0))
        results.append((after.params, metrics))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_eval_sums_are_of_real_rows():
    _, _, out = run("vit", devices=1)
    batch = list(make_batches(8))[-1]
    logits = np.asarray(out["logits"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    real = batch["mask"] > 0
    want = -log_p[np.arange(16), batch["label"]][real].sum()
    assert float(out["loss"]) == pytest.approx(want, rel=1e-5)
    assert float(out["count"]) == real.sum() == 14
    assert float(out["correct"]) == (logits.argmax(-1) == batch["label"])[real].sum()


def test_uint8_is_normalised_and_floats_are_not():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    got = normalize(jnp.asarray(images), mean=MEAN, std=STD)
    np.testing.assert_allclose(got[0, 0, 0], [-2.0, -1.0, 1.0], atol=1e-6)
    floats = jnp.array([[[[7.0, 8.0, 9.0]]]])
    np.testing.assert_array_equal(normalize(floats, mean=MEAN, std=STD), floats)


def test_losses_by_hand():
    logits, targets = jnp.array([[1.0, -2.0, 0.5]]), jnp.array([[0.7, 0.3, 0.0]])
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(
        make_loss(name="softmax")(logits, targets), -(targets * np.log(p)).sum(-1), rtol=1e-6
    )
    s = 1 / (1 + np.exp(-np.asarray(logits)))
    want = -(targets * np.log(s) + (1 - targets) * np.log(1 - s)).sum(-1)
    np.testing.assert_allclose(make_loss(name="sigmoid")(logits, targets), want, rtol=1e-6)
    present = np.array([[1, 1, 0]])
    want = -(present * np.log(s) + (1 - present) * np.log(1 - s)).mean(-1)
    np.testing.assert_allclose(make_loss(name="bce")(logits, targets), want, rtol=1e-6)
    with pytest.raises(UserError, match=r"loss.name='softmx' .*did you mean 'softmax'"):
        make_loss(name="softmx")


@pytest.mark.long
def test_the_losses_a_model_sows_are_added_by_their_weight():
    fields = MODELS["swin"] | MOE
    model = create_model("swin_moe", num_classes=5, **fields)
    mesh = create_mesh(data=1)
    tx = make_tx(lambda step: 0.1, name="sgd")
    state, shardings = create_state(
        model, tx, jax.random.key(0), image_shape=(16, 16, 3), mesh=mesh
    )
    batch = next(make_batches(16))
    _, sown = jax.jit(functools.partial(model.apply, train=True, mutable=["losses"]))(
        {"params": state.params},
        normalize(jnp.asarray(batch["image"]), mean=MEAN, std=STD),
        rngs={"dropout": jax.random.key(0)},
    )
    balance = sum(float(leaf.sum()) for leaf in jax.tree.leaves(sown))
    assert balance > 0
    losses = []
    for weight in (0.0, 0.5):
        options = StepOptions(mean=MEAN, std=STD, aux_weight=weight)
        step = make_train_step(model, tx, options=options, mesh=mesh, shardings=shardings)
        start = jax.tree.map(jnp.array, state)
        losses.append(float(step(start, batch, jax.random.key(0))[1]["loss"]))
    assert losses[1] - losses[0] == pytest.approx(0.5 * balance, rel=1e-3)


def naive_loss(logits, labels, mask, weights, *, several):
    """Weighted binary or softmax cross-entropy, one example and one class at a time."""
    total = 0.0
    for row, label, here in zip(np.asarray(logits, np.float64), labels, mask, strict=True):
        if not here:
            continue
        classes = np.flatnonzero(label) if several else [label]
        weight = np.mean([weights[c] for c in classes])
        if several:
            loss = sum(np.log1p(np.exp(-x if c in classes else x)) for c, x in enumerate(row))
        else:
            loss = np.log(np.exp(row).sum()) - row[label]
        total += weight * loss
    return total / sum(mask)


@pytest.mark.parametrize("accum_steps", mostly_long([1, 4], [4]))
@pytest.mark.parametrize("several", mostly_long([False, True], [False]))
def test_class_weights_are_those_of_a_naive_loop(several, accum_steps):
    model = create_model("vit", num_classes=5, **MODELS["vit"])
    mesh = create_mesh(data=1)
    tx = make_tx(lambda step: 0.1, name="sgd")
    state, shardings = create_state(model, tx, jax.random.key(0), image_shape=(8, 8, 3), mesh=mesh)
    # A fresh head is zero, and so would be all logits.
    head = state.params["head"]["kernel"]
    state.params["head"]["kernel"] = jax.random.normal(jax.random.key(1), head.shape)
    batch = list(make_batches(8))[2]  # its last two rows are padding
    if several:
        rng = np.random.default_rng(0)
        hot = rng.integers(0, 2, (16, 5)).astype(np.float32)
        hot[np.arange(16), batch["label"]] = 1
        batch["label"] = hot * batch["mask"][:, None]  # as the pipeline fills it up
    weights = (0.5, 2.0, 1.0, 0.0, 3.0)
    options = StepOptions(
        mean=MEAN,
        std=STD,
        task=Supervised(
            loss=make_loss(name="sigmoid" if several else "softmax"), class_weights=weights
        ),
        accum_steps=accum_steps,
        keep_logits=True,
    )
    step = make_train_step(model, tx, options=options, mesh=mesh, shardings=shardings)
    _, metrics = step(state, batch, jax.random.key(0))
    logits, labels, mask = metrics["logits"], batch["label"], batch["mask"]
    want = naive_loss(logits, labels, mask, weights, several=several)
    assert float(metrics["loss"]) == pytest.approx(want, rel=1e-5)
    named = np.asarray(logits).argmax(-1)
    right = labels[np.arange(16), named] > 0 if several else named == labels
    assert float(metrics["accuracy"]) == pytest.approx(right[mask > 0].mean())


@pytest.mark.long
def test_class_weights_are_mixed_as_the_targets_are():
    """A mixed image weighs what its two would, by their shares: its target's mean weight."""
    weights = np.array([0.5, 2.0, 1.0, 0.25, 3.0], np.float32)

    mixing = Mixing(mixup_alpha=1.0)

    def first_target(logits, targets):  # differs by image, or the pairs' sums would be equal
        return targets[:, 0] + 0 * logits.sum(-1)

    def first_target_weighted(logits, targets):
        return first_target(logits, targets) * (targets @ weights)

    losses = [
        run("vit", devices=1, task=Supervised(mixing, Loss("first", loss), chosen))[0]
        for loss, chosen in (
            (first_target, tuple(weights.tolist())),
            (first_target_weighted, None),
            (first_target, None),
        )
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert np.abs(losses[0] - losses[2]).max() > 0.01


def test_eval_sums_of_several_labels():
    model = create_model("vit", num_classes=5, **MODELS["vit"])
    mesh = create_mesh(data=1)
    tx = make_tx(lambda step: 0.1, name="sgd")
    state, shardings = create_state(model, tx, jax.random.key(0), image_shape=(8, 8, 3), mesh=mesh)
    state.params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 5))
    batch = list(make_batches(8))[2]
    batch["label"] = (np.arange(16)[:, None] % np.arange(1, 6) == 0).astype(np.float32)
    predict = compile_eval_step(model, mesh, shardings.params)
    out = predict(state.params, batch)
    logits, labels, mask = out["logits"], batch["label"], batch["mask"]
    want = naive_loss(logits, labels, mask, np.ones(5), several=True) * 14
    assert float(out["loss"]) == pytest.approx(want, rel=1e-5)
    right = labels[np.arange(16), np.asarray(logits).argmax(-1)] > 0
    assert float(out["correct"]) == right[:14].sum()

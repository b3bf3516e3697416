"""Distillation equals DeiT's own code; what the teacher is shown, and who learns from it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import apply
from PIL import Image

from vitswin_jax import create_model
from vitswin_jax.core.types import UserError
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.sharding import create_mesh, shard_batch
from vitswin_jax.train.state import create_state, place_constants
from vitswin_jax.train.step import StepOptions, make_train_step, normalize
from vitswin_jax.train.task.distill import Distillation
from vitswin_jax.train.task.losses import make_loss
from vitswin_jax.train.task.supervised import Supervised

GOLDENS = Path(__file__).parents[2] / "goldens" / "train" / "distillation.npz"
"""`DistillationLoss` of facebookresearch/deit (losses.py), run in float64 by torch 2.13 on normal
logits times 2 and the soft-target cross-entropy: soft with alpha 0.3 and tau 3, hard with 0.5."""

TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
HALF, MEAN, STD = (0.5, 0.5, 0.5), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def distillation(teacher=None, **changes):
    options = {"mean": HALF, "std": HALF, "given_mean": HALF, "given_std": HALF}
    options |= {"kind": "soft", "alpha": 0.3, "temperature": 3.0}
    return Distillation(teacher or create_model("vit", num_classes=5, **TINY), **options | changes)


@pytest.mark.parametrize(("kind", "alpha", "temperature"), [("soft", 0.3, 3.0), ("hard", 0.5, 1.0)])
def test_the_loss_and_its_gradients_are_deits(kind, alpha, temperature):
    distill = distillation(kind=kind, alpha=alpha, temperature=temperature)
    with np.load(GOLDENS) as golden:
        heads = jnp.stack([golden["class_logits"], golden["dist_logits"]], 1).astype(jnp.float32)
        targets, teacher = (jnp.float32(golden[key]) for key in ("targets", "teacher"))
        want = {key: golden[f"{kind}/{key}"] for key in ("loss", "class_grad", "dist_grad")}

    def mean_loss(heads):
        return distill.loss(heads, targets, teacher, base=make_loss(name="softmax")).mean()

    loss, grad = jax.value_and_grad(mean_loss)(heads)
    np.testing.assert_allclose(loss, want["loss"], rtol=1e-6)
    np.testing.assert_allclose(grad[:, 0], want["class_grad"], atol=1e-7)
    np.testing.assert_allclose(grad[:, 1], want["dist_grad"], atol=1e-7)


@functools.cache
def random_model(**fields):
    """A tiny model and parameters none of which is zero."""
    model = create_model("vit", num_classes=5, **TINY | fields)
    images = jnp.zeros((1, model.img_size, model.img_size, 3))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, leaves)


@pytest.mark.long
def test_the_teacher_sees_the_images_as_it_was_trained_to():
    """At another size, by Pillow's antialiased cubic, and normalised by its own numbers."""
    teacher, params = random_model()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    planes = np.moveaxis(images, -1, 1).reshape(6, 16, 16).astype(np.float32)
    small = [Image.fromarray(plane).resize((8, 8), Image.Resampling.BICUBIC) for plane in planes]
    small = np.moveaxis(np.stack(small).reshape(2, 3, 8, 8), 1, -1)
    want = jax.jit(teacher.apply)({"params": params}, jnp.asarray((small / 255 - 0.5) / 0.5))
    given = normalize(jnp.asarray(images), mean=MEAN, std=STD)
    show = distillation(teacher, given_mean=MEAN, given_std=STD).teacher_logits
    got = jax.jit(show)(params, given)
    np.testing.assert_allclose(got, want, atol=1e-4)


def step_gradients(student_fields, **changes):
    """The loss of one SGD step and how far each of the student's parameters went."""
    teacher, teacher_params = random_model()
    student = create_model("vit", num_classes=5, **TINY | student_fields)
    mesh, tx = (
        create_mesh(devices=jax.devices()[:2]),
        make_tx(lambda step: 1.0, name="sgd", momentum=0.0),
    )
    state, shardings = create_state(
        student, tx, jax.random.key(0), image_shape=(8, 8, 3), mesh=mesh
    )
    before = jax.device_get(state.params)
    constants = place_constants(jax.device_get(teacher_params), mesh)
    step = make_train_step(
        student,
        tx,
        options=StepOptions(Supervised(distillation=distillation(teacher, **changes))),
        mesh=mesh,
        shardings=shardings,
        teacher_shardings=jax.tree.map(lambda leaf: leaf.sharding, constants),
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
        "label": np.arange(8, dtype=np.int32) % 5,
        "mask": np.ones(8, np.float32),
    }
    state, metrics = step(state, shard_batch(batch, mesh), jax.random.key(0), constants)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
    images = normalize(jnp.asarray(batch["image"]), mean=HALF, std=HALF)
    said = apply(teacher, {"params": teacher_params}, images)
    return float(metrics["loss"]), moved, np.asarray(said, np.float64)


@pytest.mark.long
def test_with_a_distillation_token_each_head_learns_its_own():
    _, moved, _ = step_gradients({"dist_token": True}, alpha=1.0)
    assert moved["head"]["kernel"] == 0 and moved["head_dist"]["bias"] > 1e-4
    _, moved, _ = step_gradients({"dist_token": True}, alpha=0.0)
    assert moved["head"]["bias"] > 1e-4 and moved["head_dist"]["kernel"] == 0


@pytest.mark.long
def test_without_the_token_the_same_logits_learn_both():
    """The student's logits are zero, its softmax uniform: both losses have closed forms."""
    loss, moved, said = step_gradients({})
    log_p = said / 3 - np.log(np.exp(said / 3).sum(-1, keepdims=True))
    divergence = (np.exp(log_p) * (log_p + np.log(5))).sum(-1).mean() * 9 / 5
    assert loss == pytest.approx(0.7 * np.log(5) + 0.3 * divergence, rel=1e-5)
    assert moved["head"]["bias"] > 1e-4


def test_heads_are_what_the_logits_are_the_mean_of():
    model, params = random_model(dist_token=True)
    images = jax.random.normal(jax.random.key(3), (2, 8, 8, 3))
    heads = apply(model, {"params": params}, images, method="heads")
    assert heads.shape == (2, 2, 5) and not np.allclose(heads[:, 0], heads[:, 1])
    logits = apply(model, {"params": params}, images)
    np.testing.assert_allclose(logits, (heads[:, 0] + heads[:, 1]) / 2, rtol=1e-6)


def test_what_cannot_be_is_all_said_at_once():
    with pytest.raises(UserError) as error:
        distillation(kind="sof", alpha=1.5, temperature=0.0)
    for part in ("kind='sof' must be one of soft, hard", "alpha=1.5", "temperature=0.0"):
        assert part in str(error.value)

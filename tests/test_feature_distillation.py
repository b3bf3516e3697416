"""Runs that learn a teacher's features: what they leave, what stops and devices change."""

import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from applied import apply
from fixtures_train import UNLABELLED
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from vitswin_jax import create_model, load_metadata, load_pretrained, save_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.run.distil import widths_of
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.sharding import create_mesh, shard_batch
from vitswin_jax.train.state import create_state, place_constants
from vitswin_jax.train.step import StepOptions, make_train_step
from vitswin_jax.train.task.features import (
    FEATURES,
    FeatureDistillation,
    FeaturesOnly,
    LabelsAndFeatures,
)
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.formats.orbax import read_meta
from vitswin_jax.weights.shapes import parameter_shapes

ROOT = Path(__file__).parents[1]
DINOV3 = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2,
          "pos_embed": "none", "rope_type": "centred", "rope_rotate_half": True, "reg_tokens": 4,
          "rope_temperature": 100.0, "init_values": 1e-5, "norm_eps": 1e-5, "qkv_bias": "qv",
          "num_classes": 0}  # fmt: skip
TINY = UNLABELLED | {
    "model.embed_dim": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "optim.warmup_epochs": 0.02,
    "data.batch_size": 16,
}


def random_params(model):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(0)
    flat = {
        name: (0.2 * rng.standard_normal(shape) + name.endswith("scale")).astype(np.float32)
        for name, shape in sorted(parameter_shapes(model).items())
    }
    return unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A file of a DINOv3 of random numbers, which takes images of 24 pixels."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = create_model("vit", **DINOV3)
    images = Preprocess((24, 24), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    save_pretrained(path, model, {"params": random_params(model)}, metadata={"preprocess": images})
    return path


def make_config(teacher, changes=TINY, **more):
    sys.path.insert(0, str(ROOT))
    from configs import distill_digits

    config = distill_digits.get_config("vit")
    config.distill.teacher = None if teacher is None else str(teacher)
    config.update_from_flattened_dict(changes | more)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher):
    """(workdir, result) of a finished run."""
    workdir = tmp_path_factory.mktemp("taught")
    return workdir, train_and_evaluate(make_config(teacher), workdir)


@pytest.mark.long
def test_a_run_leaves_its_student_without_the_projections(finished):
    workdir, result = finished
    assert str(result).startswith("vit  features  test loss ")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tests = [row for row in rows if "test/loss" in row]
    assert [row["step"] for row in tests] == [3, 6]
    assert all(0 <= row["test/knn_accuracy"] <= 1 and 0 < row["test/loss"] < 2 for row in tests)
    metadata = load_metadata(workdir)
    assert metadata.fields["num_classes"] == 0 and metadata.class_names is None
    assert not [name for name in load_file(workdir / "model.safetensors") if "distill" in name]
    saved = read_meta(workdir / "checkpoints" / "6")["arrays"]
    assert "params/distill/token/kernel" in saved and "params/distill/patches/bias" in saved

    student, variables = load_pretrained(workdir)
    _, checkpoint = load_pretrained(f"{workdir}@6")
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    ours, theirs = (apply(student, each, images) for each in (variables, checkpoint))
    np.testing.assert_array_equal(ours, theirs)
    page = (workdir / "report.html").read_text()
    assert "whose labels it never saw" in page and "cosine" in page and "step 3<" in page


@pytest.mark.long
def test_a_run_broken_off_ends_with_the_same_bits(finished, teacher, tmp_path):
    """From what a kill after the second of three checkpoints leaves: the projections too."""
    workdir, _ = finished
    broken = shutil.copytree(workdir, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    shutil.rmtree(broken / "checkpoints" / "6")
    train_and_evaluate(make_config(teacher), broken)
    ours, theirs = (read_meta(each / "checkpoints" / "6")["arrays"] for each in (broken, workdir))
    assert ours == theirs


@functools.cache
def steps(*, alpha, devices=1, accum_steps=1, **sizes):
    """Two steps; the losses, and the parameters after them."""
    student = create_model(
        "vit", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
        num_classes=0 if alpha == 1 else 5,
    )  # fmt: skip
    guide = create_model("vit", **DINOV3)
    half = (0.5, 0.5, 0.5)
    features = FeatureDistillation(
        guide, half, half, half, half, "both", "smooth_l1", 1.0, alpha,
        widths_of(FEATURES["both"], student, guide),
    )  # fmt: skip
    task = FeaturesOnly(features) if alpha == 1 else LabelsAndFeatures(features=features)
    mesh = create_mesh(devices=jax.devices()[:devices], **sizes)
    tx = make_tx(lambda step: 0.01, name="sgd")
    state, shardings = create_state(
        student, tx, jax.random.key(0), image_shape=(16, 16, 3), mesh=mesh, task=task
    )
    constants = place_constants(random_params(guide), mesh)
    step = make_train_step(
        student,
        tx,
        options=StepOptions(task, accum_steps=accum_steps),
        mesh=mesh,
        shardings=shardings,
        teacher_shardings=jax.tree.map(lambda leaf: leaf.sharding, constants),
    )
    rng, losses = np.random.default_rng(0), []
    for _ in range(2):
        batch = {
            "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
            "label": np.arange(16, dtype=np.int32) % 5,
            "mask": np.ones(16, np.float32),
        }
        batch["mask"][3] = 0.0
        state, metrics = step(state, shard_batch(batch, mesh), jax.random.key(1), constants)
        losses.append(float(metrics["loss"]))
    return losses, flatten_dict(jax.device_get(state.params), sep="/")


@pytest.mark.long
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(
    "how", [{"devices": 8, "data": 2, "fsdp": 2, "tensor": 2}, {"accum_steps": 2}]
)
def test_devices_and_parts_of_a_batch_change_nothing(alpha, how):
    losses, arrays = steps(alpha=alpha)
    assert losses[0] != losses[1]
    many, theirs = steps(alpha=alpha, **how)
    np.testing.assert_allclose(many, losses, rtol=1e-5)
    for name, leaf in arrays.items():
        np.testing.assert_allclose(theirs[name], leaf, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.teacher": None}, r"features='both' needs distill.teacher"),
        ({"distill.features": "patch"}, r"features='patch' must be .*'patches'"),
        ({"distill.loss": "cosin"}, r"loss='cosin' must be .*'cosine'"),
        ({"distill.beta": -1.0}, r"beta=-1.0 must be above 0"),
        ({"distill.alpha": 0.0}, r"alpha=0.0 must be above 0"),
        ({"distill.kind": "soft"}, r"kind='soft' is not read with distill.features='both'"),
        (
            {"distill.features": None, "distill.loss": "smooth_l1"},
            r"needs distill.features, one of",
        ),
        ({"pretrain.method": "simmim"}, r"teacher|has no teacher"),
        ({"augment.label_smoothing": 0.1}, r"reads no labels, so it cannot use augment.label_sm"),
        ({"model.num_classes": 10}, r"num_classes=10 but distill.alpha=1 .* reads no labels"),
    ],
)
def test_what_does_not_fit_is_one_line(teacher, changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(make_config(teacher, **changes))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_with_labels_the_student_has_a_head_and_a_teacher_without_one(teacher):
    run = prepare(make_config(teacher, **{"distill.alpha": 0.5, "augment.label_smoothing": 0.1}))
    assert run.model.num_classes == 10 and run.unlabelled is None and run.probes is None
    assert isinstance(run.options.task, LabelsAndFeatures)
    assert run.teacher.model.num_classes == 0

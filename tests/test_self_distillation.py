"""Runs of self-distillation: what they leave, that stops change nothing, and that they learn."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures_train import UNLABELLED
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from vitswin_jax import create_model, load_metadata, load_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.evaluate.agreement import agreement_step, middle
from vitswin_jax.explain.emergence import chosen
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.plan.budget import batch_layout
from vitswin_jax.train.optim.ema import Momentum
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.run.sizes import at_size
from vitswin_jax.train.sharding import create_mesh, shard_batch
from vitswin_jax.train.state import create_state
from vitswin_jax.train.step import StepOptions, make_train_step
from vitswin_jax.train.task.self_distilled import SelfDistilled
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.formats.orbax import read_meta
from vitswin_jax.weights.load import load_pretraining

ROOT = Path(__file__).parents[1]
TINY = UNLABELLED | {
    "model.embed_dim": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "optim.warmup_epochs": 0.02,
    "data.batch_size": 16,
    "pretrain.out_dim": 16,
    "pretrain.freeze_last_layer_epochs": 0.02,  # 2 steps
    "augment.local_crops": 2,
}


def make_config(case="dino,vit", changes=TINY, **more):
    sys.path.insert(0, str(ROOT))
    from configs import mim_digits

    config = mim_digits.get_config(case)
    config.update_from_flattened_dict(changes | more)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, result) of a finished run."""
    workdir = tmp_path_factory.mktemp("distilled")
    return workdir, train_and_evaluate(make_config(), workdir)


@pytest.mark.long
def test_a_run_leaves_its_teacher_and_where_it_looked(finished):
    workdir, result = finished
    assert str(result).startswith("vit  dino  test loss ")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tests = [row for row in rows if "test/loss" in row]
    assert [row["step"] for row in tests] == [3, 6]
    assert all(0 <= row["test/knn_accuracy"] <= 1 for row in tests)
    trained = [row for row in rows if "train/loss" in row]
    assert all(0 < row["train/target_entropy"] <= np.log(16) + 1e-5 for row in trained)
    assert load_metadata(workdir).pretrain["method"] == "dino"
    names = {"3.png", "6.png"}
    assert {path.name for path in (workdir / "attention").iterdir()} == names
    page = (workdir / "report.html").read_text()
    assert page.count("Attention to each place of them") == 2 and "step 3<" in page

    encoder, variables = load_pretrained(workdir)
    model, whole = load_pretraining(workdir)
    assert encoder.num_classes == 0 and model.encoder == encoder
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    np.testing.assert_array_equal(
        encoder.apply(variables, images), model.apply(whole, images, method="features")
    )
    _, checkpoint = load_pretraining(f"{workdir}@6")  # the same average, of the state
    ours, theirs = (flatten_dict(each["params"], sep="/") for each in (whole, checkpoint))
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


@pytest.mark.long
def test_a_run_broken_off_ends_with_the_same_bits(finished, tmp_path):
    """From what a kill after the second of three checkpoints leaves: teacher and centre too."""
    workdir, _ = finished
    broken = shutil.copytree(workdir, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    shutil.rmtree(broken / "checkpoints" / "6")
    train_and_evaluate(make_config(), broken)
    ours, theirs = (load_file(each / "model.safetensors") for each in (broken, workdir))
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    centers = [
        read_meta(each / "checkpoints" / "6")["arrays"]["kept/center"] for each in (broken, workdir)
    ]
    assert centers[0] == centers[1]


MODELS = {
    "dino": ("vit", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
             {}),
    "ibot": ("swin", {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2),
                      "num_heads": (2, 2), "window_size": 4, "init_std": 0.2},
             {"patch_weight": 1.0, "centering": "sinkhorn", "shared_head": False,
              "koleo_weight": 0.1}),
}  # fmt: skip


def steps(case, *, devices=1, accum_steps=1, **mesh):
    """Two steps; the losses, and parameters, teacher and centres after them."""
    family, fields, own = MODELS[case]
    encoder = create_model(family, num_classes=0, **fields)
    head = {"out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8}
    model = create_pretraining(encoder, method="dino", **head, **own)
    mesh = create_mesh(devices=jax.devices()[:devices], **mesh)
    tx = make_tx(lambda step: 0.01, name="sgd")
    size = model.img_size[0]
    task = SelfDistilled(model, *at_size(model, (size // 2,) * 2), frozen_steps=1)
    ema = Momentum(0.9, total_steps=8)
    state, shardings = create_state(
        model, tx, jax.random.key(0), image_shape=(size, size, 3), mesh=mesh, ema=ema, task=task
    )
    before = jax.device_get(state.params)["projection"]["prototypes"]["kernel"]
    options = StepOptions(task, ema=ema, accum_steps=accum_steps)
    step = make_train_step(model, tx, options=options, mesh=mesh, shardings=shardings)
    rng = np.random.default_rng(0)
    losses, layers = [], [before]
    for _ in range(2):
        batch = {
            "image": rng.integers(0, 256, (16, 2, size, size, 3), dtype=np.uint8),
            "local": rng.integers(0, 256, (16, 2, size // 2, size // 2, 3), dtype=np.uint8),
            "mask": np.ones(16, np.float32),
        }
        batch["mask"][3] = 0.0
        state, metrics = step(state, shard_batch(batch, mesh), jax.random.key(1))
        losses.append(float(metrics["loss"]))
        layers.append(jax.device_get(state.params)["projection"]["prototypes"]["kernel"])
    np.testing.assert_array_equal(layers[1], layers[0])
    assert (layers[2] != layers[1]).any()
    trees = {"params": state.params, "teacher": state.ema, "kept": state.kept or {}}
    return losses, flatten_dict(jax.device_get(trees), sep="/")


@pytest.mark.long
@pytest.mark.parametrize("case", ["dino", "ibot"])
def test_eight_devices_are_one(case):
    losses, arrays = steps(case)
    assert losses[0] != losses[1]
    if case == "dino":
        assert np.abs(arrays["kept/center"]).max() > 0
    many, theirs = steps(case, devices=8, data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(many, losses, rtol=1e-5)
    for name, leaf in arrays.items():
        np.testing.assert_allclose(theirs[name], leaf, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_parts_of_a_batch_add_up_to_the_batch():
    losses, arrays = steps("dino")
    parts, theirs = steps("dino", accum_steps=2)
    np.testing.assert_allclose(parts, losses, rtol=1e-5)
    for name, leaf in arrays.items():
        np.testing.assert_allclose(theirs[name], leaf, atol=1e-5, err_msg=name)


def test_a_model_that_says_the_same_of_all_images_has_no_small_loss():
    encoder = create_model("vit", num_classes=0, **MODELS["dino"][1])
    model = create_pretraining(encoder, method="dino", out_dim=16, hidden_dim=8, bottleneck_dim=4)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    params = jax.jit(model.init)(jax.random.key(0), images / np.float32(255))["params"]
    flat = {**params["projection"]["bottleneck"]}
    flat["kernel"] = flat["kernel"] * 0
    flat["bias"] = flat["bias"] + 1
    projection = {**params["projection"], "bottleneck": flat}
    batch = {"image": images, "mask": np.array([1, 1, 1, 0], np.float32)}
    half = (0.5, 0.5, 0.5)
    sums = jax.jit(lambda p, b: agreement_step(p, b, model=model, mean=half, std=half))(
        {**params, "projection": projection}, jax.tree.map(jax.numpy.asarray, batch)
    )
    assert float(sums["count"]) == 3
    assert float(sums["loss"]) / 3 >= np.log(16)


def test_the_middle_is_shown_enlarged():
    rows = jax.numpy.broadcast_to(jax.numpy.arange(20.0)[None, :, None, None], (1, 20, 20, 3))
    got = np.asarray(middle(rows))[0, :, 0, 0]
    np.testing.assert_allclose(got, 9.5 + 0.7 * (np.arange(20) - 9.5), atol=1e-4)


def test_a_page_shows_the_first_and_the_last_evaluation():
    assert chosen([4]) == [4]
    assert chosen([20, 10]) == [10, 20]
    assert chosen(list(range(100))) == [0, 20, 40, 59, 79, 99]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema.decay": 0.9}, r"has an average .* ema.decay=0.9 is not for it"),
        ({"data.img_sizes": ((0, 16),)}, r"data.img_sizes=.* is not for it"),
        ({"augment.local_size": 6}, r"augment.local_size: 6x6: .*"),
        ({"augment.local_crops": 2, "augment.local_size": None}, r"needs a local_size"),
        ({"pretrain.centering": "sinkhron"}, r"centering='sinkhron' must be .*'sinkhorn'"),
        ({"pretrain.teacher_temp": 0.0}, r"teacher_temp=0.0 must be above 0"),
        ({"pretrain.momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
        ({"pretrain.norm_pix": True}, r"method='dino' does not read pretrain.norm_pix"),
        ({"pretrain.method": "simmim", "pretrain.mask_patch": 4}, r"does not read"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(make_config(**changes))
    assert "\n" not in str(error.value)


def test_a_plan_has_the_batches_that_the_run_has():
    run = prepare(make_config())
    with contextlib.closing(run.make_train_batches(0, 1)) as batches:
        batch = next(batches)
    planned = batch_layout(run)
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
        key: (x.shape, x.dtype) for key, x in planned.items()
    }


def test_views_are_only_for_this_method():
    with pytest.raises(
        UserError, match=r"augment.local_crops=2, .* only with pretrain.method='dino'"
    ):
        prepare(make_config("simmim,vit", {"augment.local_crops": 2, "augment.local_size": 8}))


@pytest.mark.long
def test_it_learns_the_digits(tmp_path):
    """The loss falls, and neighbours of the same class come near, without a label."""
    changes = {
        "model.embed_dim": 48,
        "model.depth": 3,
        "model.num_heads": 3,
        "optim.epochs": 0.0,
        "optim.total_steps": 400,
        "optim.warmup_epochs": 2.0,
        "run.log_steps": 50,
        "run.eval_epochs": 0.0,
        "run.eval_steps": 50,
        "run.checkpoint_epochs": 0.0,
        "run.checkpoint_steps": 400,
        "pretrain.probe_images": 1347,
    }
    train_and_evaluate(make_config(changes=changes), tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.5
    knn = [row["test/knn_accuracy"] for row in rows if "test/knn_accuracy" in row]
    assert knn[-1] > knn[0]

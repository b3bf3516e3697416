"""Runs without labels: what they leave, that stopping changes nothing, and the way on from them."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures_train import UNLABELLED
from flax.traverse_util import flatten_dict
from kinds import mostly_long
from safetensors.numpy import load_file

from vitswin_jax import create_model, load_metadata, load_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.evaluate.reconstruction import reconstruct
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.run.start import make_start
from vitswin_jax.train.sharding import create_mesh, shard_batch
from vitswin_jax.train.state import create_state
from vitswin_jax.train.step import StepOptions, make_train_step
from vitswin_jax.train.task.masked import Masked
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.load import load_pretraining

ROOT = Path(__file__).parents[1]
STEPS = UNLABELLED["optim.total_steps"]
TINY = UNLABELLED | {"optim.warmup_epochs": 0.1, "mesh.data": 1}
VIT = {"model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2}
SWIN = {"model.embed_dim": 8, "model.num_heads": (2, 2), "model.depths": (2, 1)}
CASES = {
    "mae,vit": VIT | {"pretrain.decoder_dim": 16, "pretrain.decoder_depth": 1},
    "simmim,swin": SWIN,
    "simmim,vit": VIT,
}
NOTHING = dict.fromkeys(("mean", "std", "crop_fraction", "crop_mode", "interpolation"))


def make_config(case, **changes):
    sys.path.insert(0, str(ROOT))
    from configs import mim_digits

    config = mim_digits.get_config(case)
    config.update_from_flattened_dict(TINY | CASES[case] | changes)
    return config


def assert_same_weights(*workdirs):
    ours, theirs = (load_file(workdir / "model.safetensors") for workdir in workdirs)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.fixture(
    scope="module", params=["mae,vit", pytest.param("simmim,swin", marks=pytest.mark.long)]
)
def finished(request, tmp_path_factory):
    """(case, workdir, result) of a finished run."""
    workdir = tmp_path_factory.mktemp("pretraining")
    return request.param, workdir, train_and_evaluate(make_config(request.param), workdir)


def test_a_run_leaves_all_that_its_users_need(finished):
    case, workdir, result = finished
    method, family = case.split(",")
    assert str(result).startswith(f"{family}  {method}  test loss ")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tests = [row for row in rows if "test/loss" in row]
    assert [row["step"] for row in tests] == [3, 6]
    for row in tests:
        assert 0 <= row["test/knn_accuracy"] <= 1 and 0 <= row["test/linear_accuracy"] <= 1
    assert not any("train/accuracy" in row for row in rows)
    metadata = load_metadata(workdir)
    assert metadata.pretrain["method"] == method and metadata.class_names is None
    assert metadata.metrics["test/loss"] == pytest.approx(result.test_loss)
    page = (workdir / "report.html").read_text()
    assert page.count("with patches filled in") == 8 and "http://" not in page.replace(
        "http://www.w3.org", ""
    )


def test_the_weights_are_an_encoder_and_go_on_as_what_they_were(finished):
    _, workdir, _ = finished
    encoder, variables = load_pretrained(workdir)
    model, whole = load_pretraining(workdir)
    assert encoder.num_classes == 0 and model.encoder == encoder
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    np.testing.assert_array_equal(
        encoder.apply(variables, images), model.apply(whole, images, method="features")
    )
    stored = load_file(workdir / "model.safetensors")
    assert flatten_dict(whole["params"], sep="/").keys() == stored.keys()
    classifier, _ = load_pretrained(workdir, num_classes=7)
    assert classifier.num_classes == 7


def test_an_image_has_its_own_mask_in_evaluation(finished):
    """Whatever stands in its batch, and where it stands."""
    _, workdir, _ = finished
    model, variables = load_pretraining(workdir)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)

    half = (0.5, 0.5, 0.5)
    fill_in = jax.jit(functools.partial(reconstruct, model=model, mean=half, std=half))

    def masks(images):
        return np.asarray(fill_in(variables["params"], {"image": images}).masks)

    whole = masks(images)
    np.testing.assert_array_equal(masks(images[[3, 1]]), whole[[3, 1]])
    assert len({mask.tobytes() for mask in whole}) > 1


@pytest.mark.long
def test_a_run_broken_off_ends_with_the_same_bits(finished, tmp_path):
    """From what a kill after the second of three checkpoints leaves on the disk."""
    case, workdir, _ = finished
    broken = shutil.copytree(workdir, tmp_path / "broken")
    for name in ("model.safetensors", "report.html"):
        (broken / name).unlink()
    checkpoints = broken / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} >= {"4", "6"}
    shutil.rmtree(checkpoints / "6")
    train_and_evaluate(make_config(case), broken)
    assert_same_weights(broken, workdir)


def test_pre_training_goes_on_from_a_workdir(finished, tmp_path):
    case, workdir, _ = finished
    run = prepare(make_config(case, init_from=str(workdir)), tmp_path)
    loaded = flatten_dict(run.start.load(head_bias=0.0), sep="/")
    stored = load_file(workdir / "model.safetensors")
    assert loaded.keys() == stored.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(loaded[name], array)
    other = {"mae,vit": "simmim,vit", "simmim,swin": "mae,vit"}[case]
    changes = {"init_from": str(workdir), "model.pos_embed": "learned"}
    with pytest.raises(UserError, match=r"was pre-trained by|contains swin"):
        prepare(make_config(other, **changes), tmp_path)


def test_fine_tuning_takes_the_encoder_and_a_fresh_head(finished):
    case, workdir, _ = finished
    family = case.split(",")[1]
    begun = make_start(
        str(workdir),
        name=family,
        fields=model_kwargs(family) | {"num_classes": 2},
        class_names=("a", "b"),
        preprocess=NOTHING,
    )
    params = flatten_dict(begun.load(head_bias=0.0), sep="/")
    stored = load_file(workdir / "model.safetensors")
    assert not params["head/kernel"].any()
    for name, leaf in params.items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(leaf, stored[f"encoder/{name}"])


@pytest.mark.long
def test_the_positions_of_a_masked_autoencoder_stay_where_they_are(tmp_path):
    config = make_config("mae,vit", **{"optim.weight_decay": 0.5})
    run = prepare(config)
    state, _ = create_state(run.model, run.tx, jax.random.key(0), **run.state)
    before = np.asarray(state.params["encoder"]["pos_embed"])
    train_and_evaluate(config, tmp_path)
    after = load_file(tmp_path / "model.safetensors")["encoder/pos_embed"]
    np.testing.assert_array_equal(after, before)


def command(workdir, case):
    changes = TINY | CASES[case] | {"pretrain.probe_every": 0}
    keys = [f"--config.{key}={value}" for key, value in changes.items()]
    recipe = f"--config={ROOT / 'configs' / 'mim_digits.py'}:{case}"
    return [sys.executable, str(ROOT / "train.py"), recipe, f"--workdir={workdir}", *keys]


@pytest.mark.long
@pytest.mark.parametrize("case", ["mae,vit", "simmim,swin"])
def test_killing_a_run_loses_nothing(case, environment, tmp_path):
    """kill -9 after the first line of metrics; the resumed run ends with the same bits."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, case), check=True, capture_output=True, env=environment)
    with subprocess.Popen(
        command(broken, case),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        path = broken / "metrics.jsonl"
        while process.poll() is None and not (path.exists() and path.read_text()):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (broken / "model.safetensors").exists()
    subprocess.run(command(broken, case), check=True, capture_output=True, env=environment)
    assert_same_weights(broken, whole)


MODELS = {
    "mae": ("vit", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
            {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}),
    "simmim": ("swin", {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2),
                        "num_heads": (2, 2), "window_size": 4, "init_std": 0.2},
               {"mask_patch": 4}),
}  # fmt: skip


def steps(method, *, devices=1, **mesh):
    """Two steps on batches that have no labels; the losses, and the parameters after them."""
    family, fields, own = MODELS[method]
    encoder = create_model(family, num_classes=0, **fields)
    model = create_pretraining(encoder, method=method, **own)
    mesh = create_mesh(devices=jax.devices()[:devices], **mesh)
    tx = make_tx(lambda step: 0.1, name="sgd")
    shape = (*model.img_size, 3)
    state, shardings = create_state(model, tx, jax.random.key(0), image_shape=shape, mesh=mesh)
    options = StepOptions(Masked())
    step = make_train_step(model, tx, options=options, mesh=mesh, shardings=shardings)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(2):
        image = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
        batch = shard_batch({"image": image, "mask": np.ones(16, np.float32)}, mesh)
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return losses, flatten_dict(jax.device_get(state.params), sep="/")


@pytest.mark.long
@pytest.mark.parametrize("method", ["mae", pytest.param("simmim", marks=pytest.mark.long)])
def test_eight_devices_are_one(method):
    losses, params = steps(method)
    assert losses[0] != losses[1]
    many, theirs = steps(method, devices=8, data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(many, losses, rtol=1e-5)
    for name, leaf in params.items():
        np.testing.assert_allclose(theirs[name], leaf, atol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("method", mostly_long(MODELS, ["mae"]))
def test_stacked_blocks_compute_what_a_loop_does(method):
    family, fields, own = MODELS[method]
    loop, scanned = (
        create_pretraining(
            create_model(family, num_classes=0, scan=scan, **fields), method=method, **own
        )
        for scan in (False, True)
    )
    images = jax.random.normal(jax.random.key(2), (2, *loop.img_size, 3))
    params = jax.jit(loop.init)(jax.random.key(0), images)["params"]
    stacked = stack_blocks(params)
    want = jax.eval_shape(scanned.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, want)
    outs = [
        jax.jit(model.apply)({"params": p}, images, rngs={"mask": jax.random.key(3)})
        for model, p in ((loop, params), (scanned, stacked))
    ]
    np.testing.assert_array_equal(outs[0].masks, outs[1].masks)
    np.testing.assert_allclose(outs[0].loss, outs[1].loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("mae,vit", {"augment.mixup_alpha": 0.8}, r"uses whole images and no labels"),
        ("mae,vit", {"pretrain.method": "mea"}, r"one of simmim, mae, dino \(did you mean 'mae'"),
        ("mae,vit", {"pretrain.mask_patch": 4}, r"method='mae' does not read pretrain.mask_patch"),
        ("mae,vit", {"pretrain.mask_ratio": 0.99}, r"mask_ratio=0.99 leaves 0 of 16 patches"),
        ("simmim,swin", {"pretrain.mask_patch": 3}, r"mask_patch=3 must divide img_size=16x16"),
        ("simmim,swin", {"pretrain.norm_window": 4}, r"norm_window=4 must be odd"),
        ("simmim,vit", {"model.num_classes": 10}, r"reads no labels; leave it None"),
        ("simmim,vit", {"pretrain.probe_images": 0}, r"pretrain.probe_images=0 above 0"),
    ],
)
def test_what_does_not_fit_is_one_line(case, changes, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(make_config(case, **changes))
    assert "\n" not in str(error.value)


def test_a_swin_has_no_tokens_to_leave_out():
    swin = create_model("swin", num_classes=0, **MODELS["simmim"][1])
    with pytest.raises(UserError, match="needs a ViT, because Swin cannot leave tokens out"):
        create_pretraining(swin, method="mae")

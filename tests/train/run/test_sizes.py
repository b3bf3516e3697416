"""Image sizes by epoch: when they change, what the model then sees, and that a resume is exact."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from kinds import mostly_long

from vitswin_jax import create_model, load_pretrained, save_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.run.sizes import at_size, make_sizes, parts
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.shapes import parameter_shapes

MODELS = {
    "vit": {"img_size": (32, 48), "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2,
            "reg_tokens": 1},
    "vit relative": {"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2,
                     "pos_embed": "relative", "pos_embed_at": "every"},
    "swin": {"img_size": 64, "patch_size": 4, "embed_dim": 8, "depths": (1, 2),
             "num_heads": (1, 2), "window_size": 8, "ape": True},
    "swin clipped": {"img_size": 64, "patch_size": 8, "embed_dim": 8, "depths": (1, 2),
                     "num_heads": (1, 2), "window_size": 8, "window_clip": "per_axis"},
}  # fmt: skip


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", mostly_long(MODELS, ["vit", "swin"]))
def test_a_model_at_another_size_is_as_its_weights_are_when_loaded_there(tmp_path, case, scan):
    model = create_model(case.split()[0], num_classes=3, **MODELS[case])
    rng = np.random.default_rng(0)
    flat = {n: rng.normal(size=s).astype(np.float32) for n, s in parameter_shapes(model).items()}
    params = {}
    for name, leaf in flat.items():
        *above, last = name.split("/")
        inner = params
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = leaf
    path = save_pretrained(tmp_path / "a.safetensors", model, {"params": params})
    params, size = jax.tree.map(jnp.asarray, params), (24, 32) if case == "vit" else (16, 16)
    _, expected = load_pretrained(path, img_size=size)
    if scan:
        model, params = model.clone(scan=True), stack_blocks(params)
        expected = {"params": stack_blocks(expected["params"])}
    sized, fit = at_size(model, size)
    assert sized.img_size == size
    fitted = params if fit is None else fit(params)
    want, got = (flatten_dict(tree, sep="/") for tree in (expected["params"], fitted))
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-5, err_msg=name)
    assert at_size(model, model.img_size if case == "vit" else (model.img_size,) * 2)[1] is None


def test_gradients_reach_the_tables_of_the_models_own_size():
    model = create_model("vit", num_classes=3, **MODELS["vit"])
    _, fit = at_size(model, (16, 16))
    table = jnp.ones((1, 26, 8))
    grad = jax.grad(lambda t: fit({"pos_embed": t})["pos_embed"].sum())(table)
    assert grad.shape == table.shape
    np.testing.assert_allclose(grad.sum(), (4 + 2) * 8, rtol=1e-5)  # each new row has weights of 1


def test_a_batch_has_the_size_of_the_epoch_in_which_it_begins():
    model = create_model("vit", **MODELS["vit"])
    sizes = make_sizes(((0, 16), (2, (16, 24)), (3, 32)), model, steps_per_epoch=2.5)
    assert sizes == ((0, (16, 16)), (5, (16, 24)), (8, (32, 32)))
    assert list(parts(sizes, 0, 10)) == [(0, 5, (16, 16)), (5, 8, (16, 24)), (8, 10, (32, 32))]
    assert list(parts(sizes, 6, 7)) == [(6, 7, (16, 24))]
    assert list(parts(sizes, 9, 9)) == []
    assert make_sizes((), model, steps_per_epoch=2.5) == ((0, (32, 48)),)


@pytest.mark.parametrize(
    ("img_sizes", "message"),
    [
        (((1, 16),), "epochs must start at 0 and increase, such as ((0, 128), (20, 160)"),
        (((0, 16), (0, 24)), "epochs must start at 0 and increase"),
        ((16, 24), "must be pairs (epoch, image size) in order"),
        (((0, (16, 0)),), "sizes must be whole numbers above 0"),
        (((0, -8),), "sizes must be whole numbers above 0"),
        (((0, 16), (1, 30)), "img_size=30x30 is no multiple of patch_size=8x8, as 24x24"),
    ],
)
def test_a_wrong_schedule_is_one_line(img_sizes, message):
    model = create_model("vit", **MODELS["vit"])
    with pytest.raises(UserError) as error:
        make_sizes(img_sizes, model, steps_per_epoch=10.0)
    assert str(error.value).startswith("data.img_sizes")
    assert message in str(error.value)


SIZES = ((0, 8), (0.1, (8, 12)), (0.25, 12))  # of the digits, by 21 steps an epoch: 0, 3 and 6


@pytest.fixture(scope="module")
def whole(make_config, tmp_path_factory):
    """A run of 8 steps at three sizes that nothing stopped."""
    workdir = tmp_path_factory.mktemp("sizes") / "run"
    config = make_config(**{"model.patch_size": 4, "data.img_sizes": SIZES})
    train_and_evaluate(config, workdir)
    return config, workdir


@pytest.mark.long
def test_a_run_sees_each_size_in_its_time_and_is_evaluated_at_its_own(whole, tmp_path, caplog):
    config, workdir = whole
    run = prepare(config)
    batches = list(run.make_train_batches(0, run.plan.total_steps))
    shapes = [batch["image"].shape[1:3] for batch in batches]
    starts = dict(run.sizes)
    expected = [starts[max(s for s in starts if s <= step)] for step in range(len(batches))]
    assert shapes == expected
    assert set(shapes) == {(8, 8), (8, 12), (12, 12)}
    model, _ = load_pretrained(workdir)
    assert (model.img_size, run.preprocess.img_size) == (16, (16, 16))


@pytest.mark.long
def test_a_resume_across_a_change_of_size_is_exact(whole, tmp_path, caplog):
    config, workdir = whole
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    steps = sorted(int(p.name) for p in (again / "checkpoints").iterdir() if p.name.isdecimal())
    for step in steps[1:]:
        shutil.rmtree(again / "checkpoints" / str(step))
    (again / "model.safetensors").unlink()
    with caplog.at_level(logging.INFO):
        train_and_evaluate(config, again)
    assert "image sizes: 8x8 from step 1 (epoch 0), 8x12 from step" in caplog.text
    assert "evaluated at 16x16" in caplog.text
    for one, other in zip(
        *(jax.tree.leaves(load_pretrained(each)[1]) for each in (workdir, again)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    last = [json.loads(line) for line in (again / "metrics.jsonl").read_text("utf-8").splitlines()]
    before = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
    assert last[-1]["test/loss"] == json.loads(before[-1])["test/loss"]

"""Starting from weights: what the file decides and what the config; and that it is worth it."""

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from vitswin_jax import create_model, load_metadata, load_pretrained, save_pretrained
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.registry import model_kwargs
from vitswin_jax.train.optim.ema import Ema
from vitswin_jax.train.optim.optimizers import make_tx
from vitswin_jax.train.run.reconcile import reconcile
from vitswin_jax.train.run.start import make_start, read_start, save_start
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import create_state
from vitswin_jax.trainer import train_and_evaluate

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
NAMES = ("a", "b", "c")
NOTHING = dict.fromkeys(("mean", "std", "crop_fraction", "crop_mode", "interpolation"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a tiny ViT with numbers of its own in every place: tanh GELU, three classes."""
    model = create_model("vit", num_classes=3, act="gelu_tanh", norm_eps=1e-3, **TINY)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 3))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    preprocess = Preprocess(img_size=(16, 16), mean=(0.1, 0.2, 0.3), crop_fraction=0.7)
    metadata = {"preprocess": preprocess, "class_names": NAMES}
    return save_pretrained(path, model, {"params": params}, metadata=metadata)


def start(path, *, name="vit", class_names=NAMES, preprocess=NOTHING, **fields):
    given = model_kwargs(name) | {"num_classes": len(class_names)} | fields
    return make_start(
        str(path), name=name, fields=given, class_names=class_names, preprocess=preprocess
    )


def test_what_the_config_does_not_say_is_the_files(weights):
    begun = start(weights, drop_path_rate=0.1, dtype="bfloat16")
    model, _ = load_pretrained(weights, drop_path_rate=0.1, dtype=jnp.dtype("bfloat16"))
    assert begun.model == model
    assert (begun.model.act, begun.model.norm_eps, begun.model.embed_dim) == ("gelu_tanh", 1e-3, 16)
    assert begun.preprocess == load_metadata(weights).preprocess
    assert begun.origin.adapted == ("the head is kept; the classes are the same",)


@pytest.mark.parametrize(("channels", "mean"), [(1, (0.25,)), (4, (0.25,)), (2, (0.1, 0.3))])
def test_another_number_of_channels_is_the_runs_own(weights, channels, mean):
    begun = start(weights, in_chans=channels, preprocess=NOTHING | {"mean": mean})
    assert begun.model.in_chans == channels
    assert begun.preprocess.mean == mean * (channels // len(mean))
    assert begun.preprocess.std == (0.5,) * channels
    assert any("from 3 input channels" in line for line in begun.origin.adapted)
    assert "mean 0.2 and std 0.5 are the average of 3 channels, for each of" in str(
        begun.origin.adapted
    )
    kernel = begun.load(head_bias=0.0)["patch_embed"]["proj"]["kernel"]
    assert kernel.shape == (4, 4, channels, 16)
    with pytest.raises(UserError, match=r"has 5 numbers, but model\.in_chans="):
        start(weights, in_chans=channels, preprocess=NOTHING | {"std": (0.5,) * 5})


def test_what_the_config_names_wins_where_no_parameter_is_another(weights):
    begun = start(weights, act="quick_gelu", img_size=24, preprocess=NOTHING | {"mean": [0.5] * 3})
    assert (begun.model.act, begun.model.norm_eps) == ("quick_gelu", 1e-3)
    assert begun.preprocess.mean == (0.5, 0.5, 0.5) and begun.preprocess.crop_fraction == 0.7
    assert begun.preprocess.img_size == (24, 24)
    text = "; ".join(begun.origin.adapted)
    for part in (
        "pos_embed resized from 4x4 to 6x6",
        "act is 'quick_gelu', the file's 'gelu_tanh'",
        "mean is (0.5, 0.5, 0.5), the file's (0.1, 0.2, 0.3)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("name", "fields", "differences"),
    [
        (
            "vit",
            {"embed_dim": 32, "depth": 3},
            ["model.embed_dim is 32 and the file's 16", "depth"],
        ),
        ("vit_tiny_patch16_224", {}, ["embed_dim", "depth", "num_heads", "patch_size"]),
    ],
)
def test_another_architecture_is_refused_with_all_that_differs(weights, name, fields, differences):
    with pytest.raises(UserError, match="is of another architecture") as error:
        start(weights, name=name, **fields)
    assert "\n" not in str(error.value)
    for part in differences:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("class_names", "kept"), [(NAMES, True), (("a", "b", "d"), False), (("x", "y"), False)]
)
def test_the_head_is_kept_where_the_classes_have_the_same_names(weights, class_names, kept):
    begun = start(weights, class_names=class_names)
    params, own = begun.load(head_bias=-2.0), load_file(weights)
    if kept:
        np.testing.assert_array_equal(params["head"]["kernel"], own["head/kernel"])
        np.testing.assert_array_equal(params["head"]["bias"], own["head/bias"])
    else:
        assert params["head"]["kernel"].shape == (16, len(class_names))
        assert not params["head"]["kernel"].any() and (params["head"]["bias"] == -2.0).all()
        assert any("the head is fresh" in line for line in begun.origin.adapted)
    np.testing.assert_array_equal(
        params["block_0"]["attn"]["qkv"]["kernel"], own["block_0/attn/qkv/kernel"]
    )


def test_another_codes_file_brings_its_numbers(tmp_path):
    """vit_jax's: tanh GELU, inputs in [-1, 1], and heads that its kernels show."""
    cases = json.loads(
        (Path(__file__).parents[2] / "goldens" / "train" / "trajectories.json").read_text()
    )
    begun = start(parity.write(cases["google_vit"], tmp_path))
    assert begun.model.act == "gelu_tanh" and begun.model.num_heads == 3
    assert begun.preprocess.mean == begun.preprocess.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("fields", "fresh", "width"), [({}, True, None), ({}, False, 16),
    ({"pre_logits": 16}, True, 16)])  # fmt: skip
def test_a_fresh_head_takes_the_pre_logits_with_it(fields, fresh, width):
    theirs = create_model("vit", num_classes=3, pre_logits=16, **TINY)
    fields = model_kwargs("vit") | fields
    chosen, _ = reconcile("vit", fields, theirs, origin="file", fresh_head=fresh)
    assert (fields | chosen)["pre_logits"] == width


def test_a_file_that_changes_under_a_run_is_refused(weights, tmp_path):
    path = shutil.copy(weights, tmp_path / "mine.safetensors")
    begun = start(path)
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(UserError, match=r"mine\.safetensors: has changed since the run began"):
        begun.load(head_bias=0.0)


def test_each_device_is_given_its_part_and_the_average_starts_there(weights):
    begun = start(weights, scan=True)
    loaded = begun.load(head_bias=0.0)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    state, _ = create_state(
        begun.model,
        make_tx(lambda step: 0.1),
        jax.random.key(0),
        image_shape=(16, 16, 3),
        mesh=create_mesh(),
        ema=Ema(0.9),
        loaded=loaded,
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, loaded)
    jax.tree.map(np.testing.assert_array_equal, state.ema, loaded)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("scan", [False, True])
def test_on_a_mesh_a_run_starts_from_the_same_numbers(weights, scan):
    """Of a file whose classes are others, so that the head is fresh."""
    begun, mesh = start(weights, class_names=("x", "y"), scan=scan), create_mesh(fsdp=2, tensor=2)
    there, here = begun.load(head_bias=-2.0, mesh=mesh), begun.load(head_bias=-2.0)
    jax.tree.map(np.testing.assert_array_equal, there, here)
    state, _ = create_state(
        begun.model, make_tx(lambda step: 0.1), jax.random.key(0), image_shape=(16, 16, 3),
        mesh=mesh, loaded=there,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, state.params, here)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(state.params))


def test_heads_start_from_the_bias_that_is_asked_for():
    """The others start from zero, or with a deviation of 1e-6 in an MLP."""
    state, _ = create_state(
        create_model("vit", num_classes=5, dist_token=True, **TINY),
        make_tx(lambda step: 0.1),
        jax.random.key(0),
        image_shape=(16, 16, 3),
        mesh=create_mesh(data=1),
        head_bias=-6.9,
    )
    biases = {p: b for p, b in flatten_dict(state.params, sep="/").items() if p.endswith("bias")}
    for path, bias in biases.items():
        want = -6.9 if path in ("head/bias", "head_dist/bias") else 0.0
        np.testing.assert_allclose(bias, want, atol=1e-5, err_msg=path)
    assert len(biases) > 8


LEARN = {
    "mesh.data": 1,
    "model.embed_dim": 32,
    "model.patch_size": 2,
    "augment.mixup_alpha": 0.0,
    "augment.cutmix_alpha": 0.0,
    "augment.crop": "none",
    "augment.rotate": 0.0,
    "augment.zoom": 0.0,
    "augment.label_smoothing": 0.0,
    "optim.peak_lr": 3e-3,
    "optim.epochs": 1.0,
    "run.eval_epochs": 0.5,
    "run.checkpoint_epochs": 9.0,
}


@pytest.fixture(scope="module")
def pretrained(make_config, tmp_path_factory):
    """The workdir of a run that learned the ten digits at 8 pixels, in 126 steps."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    changes = {"model.img_size": 8, "optim.epochs": 6.0, "run.eval_epochs": 6.0}
    train_and_evaluate(make_config(**LEARN | changes), workdir)
    return workdir


@pytest.mark.long
def test_fine_tuning_beats_training_from_scratch_at_equal_steps(
    make_config, pretrained, tmp_path, caplog
):
    """From ten classes at 8 pixels to two at 12; the report shows both, and what was adapted."""
    changes = LEARN | {"model.img_size": 12, "data.dataset": "digits_parity"}
    scratch = train_and_evaluate(make_config(**changes), tmp_path / "scratch")
    changes |= {"init_from": str(pretrained), "compare_to": str(tmp_path / "scratch")}
    with caplog.at_level(logging.INFO, logger="vitswin_jax"):
        tuned = train_and_evaluate(make_config(**changes), tmp_path / "tuned")
    assert tuned.test_accuracy > scratch.test_accuracy + 0.05
    (line,) = [r.getMessage() for r in caplog.records if "starts from" in r.getMessage()]
    adapted = ("10 classes to 2: the head is fresh", "pos_embed resized from 4x4 to 6x6")
    page = tuned.report.read_text()
    origin = load_metadata(tmp_path / "tuned").provenance["init_from"]
    for text in adapted:
        assert text in line and text in page and any(text in note for note in origin["adapted"])
    assert origin["init_from"] == str(pretrained) and len(origin["sha256"]) == 64
    assert "Both after 21 steps" in page
    for result in (scratch, tuned):
        assert f"{100 * result.test_accuracy:.1f} %" in page


@pytest.mark.long
def test_a_run_goes_on_bit_for_bit_without_the_file_it_began_from(make_config, weights, tmp_path):
    """With adapters, an average and a teacher; the file is gone when the run resumes."""
    path = shutil.copy(weights, tmp_path / "begin.safetensors")
    digits = create_model("vit", num_classes=10, **TINY)
    params = jax.jit(digits.init)(jax.random.key(3), jnp.zeros((1, 16, 16, 3)))
    teacher = save_pretrained(tmp_path / "teacher.safetensors", digits, params)
    config = make_config(
        **{
            "mesh.data": 1,
            "init_from": str(path),
            "distill.teacher": str(teacher),
            "lora.rank": 2,
            "ema.decay": 0.5,
            "optim.epochs": 0.19,
            "run.checkpoint_epochs": 0.095,
        }
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_and_evaluate(config, whole)
    shutil.copytree(whole, broken)
    steps = sorted(int(p.name) for p in (whole / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [2, 4]
    shutil.rmtree(broken / "checkpoints" / "4")
    (broken / "model.safetensors").unlink()
    path.unlink()
    train_and_evaluate(config, broken)
    ours, theirs = (load_file(workdir / "model.safetensors") for workdir in (whole, broken))
    assert ours.keys() == theirs.keys() and not any("lora" in name for name in ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    config.ema.evaluate = False
    train_and_evaluate(config, broken)
    last = load_file(broken / "model.safetensors")
    assert (last["head/kernel"] != ours["head/kernel"]).any()
    model, variables = load_pretrained(broken)
    assert model.act == "gelu_tanh" and variables["params"]["head"]["kernel"].shape == (16, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere.npz"}, "nowhere.npz: no such file or folder"),
        ({"distill.teacher": "{weights}"}, "has 3 classes, a, b, c, but the data has 10, "),
        ({"compare_to": "{folder}"}, "has no evaluations in a metrics.jsonl"),
        ({"ema.decay": 1.5}, "ema.decay=1.5 must be in"),
        ({"lora.rank": 0}, "lora: rank=0 must be above 0"),
        ({"lora.rank": 2, "lora.kernels": "mpl/.*"}, "kernels='mpl/.*' matches no parameter"),
    ],
)
def test_what_cannot_be_started_from_writes_nothing(
    make_config, weights, tmp_path, changes, message
):
    places = {"weights": weights, "folder": weights.parent}
    changes = {
        key: value.format(**places) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message) as error:
        train_and_evaluate(make_config(**changes), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_start_that_was_kept_is_read_again_or_refused_in_a_line(weights, tmp_path):
    begun = start(weights)
    save_start(tmp_path, begun)
    fields = model_kwargs("vit") | {"num_classes": 3}
    again = read_start(tmp_path, name="vit", fields=fields)
    assert (again.model, again.preprocess) == (begun.model, begun.preprocess)
    assert again.origin.sha256 == begun.origin.sha256
    path = tmp_path / "start.json"
    text = path.read_text()
    content = json.loads(text)
    del content["checksum"]
    path.write_text(json.dumps(content))  # as older versions wrote it
    assert read_start(tmp_path, name="vit", fields=fields) == again
    preprocess = content["preprocess"] | {"nonsense": 1}
    for damaged in (
        "[]", "", "\0", "[" * 100_000, "{}",
        text.replace("tanh", "erf"), text.replace("0.7", "0.8"),
        json.dumps(content | {"sha256": 3}), json.dumps(content | {"preprocess": preprocess}),
        json.dumps(content | {"hints": []}), json.dumps(content | {"more": 1}),
    ):  # fmt: skip
        path.write_text(damaged)
        with pytest.raises(UserError) as caught:
            read_start(tmp_path, name="vit", fields=fields)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).endswith("; remove it, and the run takes it from init_from again.")
    path.unlink()
    assert read_start(tmp_path, name="vit", fields=fields) is None

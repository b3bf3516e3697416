"""The whole life of each descendant: a run on a mesh, its resume, and each way to use its weights.

A run of two steps on the digits over a mesh of (2, 2, 2) ends, loses its last checkpoint, and
resumes. Its weights are then converted and verified, exported twice, and explained.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from fixtures_train import ROOT
from flax.traverse_util import unflatten_dict
from kinds import mostly_long
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from vitswin_jax import create_model, save_pretrained
from vitswin_jax.cli import main
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.weights.open import open_pretrained
from vitswin_jax.weights.shapes import parameter_shapes

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4}
SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4),
        "window_size": 4, "init_std": 0.1, "pad_before_roll": True}  # fmt: skip
EVA = {"qkv_bias": "qv", "global_pool": "avg", "fc_norm": True}
DINOV3 = {"pos_embed": "none", "rope_type": "centred", "rope_rotate_half": True, "reg_tokens": 4,
          "rope_temperature": 100.0, "init_values": 1e-5, "norm_eps": 1e-5,
          "qkv_bias": "qv"}  # fmt: skip
MAPS = {"heads", "rollout", "gradcam", "distance", "filters"}
TABLE = MAPS | {"positions"}
FAMILIES = {  # name: (family, fields, formats that have it, what `explain` draws)
    "dinov3": ("vit", VIT | DINOV3, ("timm",), MAPS),
    "dinov3_gated": ("vit", VIT | DINOV3 | {"act": "swiglu", "qkv_bias": False}, ("timm",), MAPS),
    "eva": ("vit", VIT | EVA, ("timm",), TABLE),
    "eva02": ("vit", VIT | EVA | {
        "act": "swiglu", "scale_mlp_norm": True, "scale_attn_norm": True, "mlp_ratio": 5.0,
        "rope_type": "axial", "rope_ref_grid": (4, 4)}, ("timm",), TABLE),
    "perception": ("vit", VIT | {
        "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "rope_type": "axial",
        "rope_grid_indexing": "xy", "rope_grid_offset": 1.0, "global_pool": "map",
        "pool_include_prefix": True, "pool_heads": 2}, ("timm",), TABLE),
    "rope": ("vit", VIT | {
        "rope_type": "axial", "rope_temperature": 100.0, "rope_grid_indexing": "xy",
        "pos_embed": "none", "init_values": 1e-5}, ("timm",), MAPS),
    "rope_mixed": ("vit", VIT | {
        "rope_type": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy",
        "no_embed_class": True, "init_values": 1e-5}, ("timm",), TABLE),
    "aimv2": ("vit", VIT | {
        "class_token": False, "global_pool": "avg", "norm_layer": "rmsnorm", "norm_eps": 1e-5,
        "patch_norm": True, "qkv_bias": False, "proj_bias": False, "mlp_bias": False,
        "act": "swiglu", "mlp_ratio": 5.5}, ("timm",), TABLE),
    "beit": ("vit", VIT | {
        "global_pool": "avg", "fc_norm": True,
        "pos_embed": "relative", "pos_embed_at": "every", "init_values": 0.1},
        ("timm", "huggingface"), MAPS | {"biases"}),
    "naflex": ("vit", VIT | {
        "class_token": False, "global_pool": "map", "act": "gelu_tanh"},
        ("timm",), TABLE),
    "aimv2_query": ("vit", VIT | {
        "class_token": False, "norm_layer": "rmsnorm", "norm_eps": 1e-5, "patch_norm": True,
        "qkv_bias": False, "proj_bias": False, "mlp_bias": False, "act": "swiglu",
        "global_pool": "query", "pos_embed": "sincos2d_mae"}, (), TABLE),
    "relpos": ("vit", VIT | {
        "pos_embed": "relative_mlp", "pos_embed_at": "every", "class_token": False,
        "global_pool": "avg", "fc_norm": True, "init_values": 1e-5},
        ("timm",), MAPS | {"biases"}),
    "torchvision_vit": ("vit", VIT, ("torchvision", "timm", "huggingface"), TABLE),
    "torchvision_swin": ("swin", SWIN, ("torchvision", "timm"), MAPS | {"biases", "windows"}),
    "swinv2_cr": ("swinv2_cr", SWIN | {
        "window_clip": "per_axis", "pad_before_roll": False}, ("timm",),
        MAPS | {"biases", "windows"}),
    "torchvision_swinv2": ("swinv2", SWIN | {"pretrained_window_sizes": (0, 0)},
                           ("torchvision", "timm"), MAPS | {"biases", "windows"}),
}  # fmt: skip
HEADLESS = {
    "aimv2_query": "huggingface",
    "dinov3": "huggingface",
    "dinov3_gated": "huggingface",
    "naflex": "huggingface",
}
"""Formats that have a family without a head only."""
"""What every run tries; the others are long."""


def make_config(family, fields):
    from configs import base, digits

    return base.recipe(
        digits.IMAGES,
        model={"name": family, **fields},
        data={"batch_size": 16, "eval_batch_size": 48, "workers": 0, "test_split": "test[:48]"},
        optim={"epochs": 0.0, "total_steps": 2, "warmup_epochs": 0.0, "peak_lr": 1e-3},
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        run={"log_steps": 1, "eval_epochs": 0.0, "eval_steps": 2, "checkpoint_epochs": 0.0,
             "checkpoint_steps": 1},
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def recipes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture
def vitswin(capsys):
    def vitswin(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return vitswin


def weights_of(workdir):
    return load_file(workdir / "model.safetensors")


def train_and_resume(config, workdir):
    """Runs a recipe, then its last step again; both end with the same weights, which moved."""
    train_and_evaluate(config, workdir)
    once = weights_of(workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    (workdir / "model.safetensors").unlink()
    train_and_evaluate(config, workdir)
    again = weights_of(workdir)
    assert once.keys() == again.keys()
    for name, array in once.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert np.abs(once["head/kernel"]).max() > 0  # which begins at 0


def names():
    return mostly_long(FAMILIES, [])


@pytest.mark.parametrize("name", names())
def test_it_trains_resumes_converts_exports_and_explains(name, tmp_path, vitswin):
    family, fields, formats, parts = FAMILIES[name]
    workdir = tmp_path / "run"
    train_and_resume(make_config(family, fields), workdir)
    for format in formats:
        suffix = ".pth" if format == "torchvision" else ""
        target = (tmp_path / f"{format}{suffix}", "--to", format, "--verify")
        assert "largest difference of the logits" in vitswin("convert", workdir, *target)
    if name in HEADLESS:
        target = ("--to", HEADLESS[name], "--num-classes", "0", "--verify")
        assert "largest difference" in vitswin("convert", workdir, tmp_path / "bare", *target)
    for suffix in ("onnx", "stablehlo"):
        told = vitswin("export", workdir, tmp_path / f"model.{suffix}")
        assert "largest difference from JAX" in told
    digit = tmp_path / "digit.png"
    Image.fromarray((load_digits().images[3] * 15.9).astype(np.uint8)).save(digit)
    out = tmp_path / "explained"
    vitswin("explain", workdir, digit, "--out", out)
    drawn = {path.name.split(".")[1] for path in out.glob("*.png")}
    assert drawn == parts


@pytest.mark.long
def test_dinov3s_features_serve_probes(tmp_path, vitswin):
    """Of a folder as transformers has it, with weights that are drawn; by scikit-learn's votes."""
    model = create_model("vit", **VIT | DINOV3 | {"num_classes": 0})
    rng = np.random.default_rng(0)
    flat = {
        key: np.float32(key.endswith(("scale", "gamma")) + 0.2 * rng.standard_normal(shape))
        for key, shape in parameter_shapes(model).items()
    }
    variables = {"params": unflatten_dict(flat, sep="/")}
    images = {"preprocess": Preprocess((16, 16), crop_mode="squash", crop_fraction=1.0)}
    folder = tmp_path / "dinov3"
    save_pretrained(folder, model, variables, format="huggingface", metadata=images)
    told = vitswin("evaluate", folder, "digits", "--knn", "--linear-probe", "--json")
    found = {(row["probe"], row["setting"]): row["top1"] for row in json.loads(told)["probes"]}
    (linear,) = [top1 for (kind, _), top1 in found.items() if kind == "linear"]
    features = {split: features_of(folder, split) for split in ("train", "test")}
    voters = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(*features["train"])
    assert found["neighbours", "20"] == pytest.approx(voters.score(*features["test"]), abs=0.005)
    assert min(linear, found["neighbours", "20"]) > 0.5  # of ten classes


def features_of(path, split):
    """Returns features and labels of the digits, by the model's own method."""
    opened, source = open_pretrained(path), open_source("digits", split=split)
    images = [opened.preprocess(decode_image(source[i]["image"])) for i in range(len(source))]
    features = jax.jit(functools.partial(opened.model.apply, method="features"))
    x = features(opened.variables, np.stack(images))
    return np.asarray(x), np.array([source[i]["label"] for i in range(len(source))])

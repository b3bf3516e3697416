"""SimMIM's and MAE's files, decoder included: read as the originals compute, and written back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
from applied import apply
from flax.traverse_util import flatten_dict
from kinds import mostly_long

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.models.masked import cut_patches
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.load import load_pretraining

CASES = parity.read_cases("masked")


def arrays_of(name):
    with np.load(parity.GOLDENS / "masked.npz") as arrays:
        return {kind: arrays[f"{name}/{kind}"] for kind in ("masks", "loss", "decoded")}


@pytest.mark.parametrize("name", mostly_long(CASES, ["mae_vit"]))
def test_a_file_goes_on_as_the_original_would(name, tmp_path):
    case, want = CASES[name], arrays_of(name)
    model, variables = load_pretraining(parity.write(case, tmp_path), **case["overrides"])
    assert vitswin_jax.models.registry.family_of(model.encoder) == case["model"]
    model = model.clone(**case["method"])
    images = jnp.asarray(parity.make_images(case["seed"], 3, 32, 32))
    with jax.default_matmul_precision("highest"):
        out = apply(model, variables, images, jnp.asarray(want["masks"]))
    assert float(out.loss.mean()) == pytest.approx(float(want["loss"]), rel=1e-5)
    if name == "mae_vit":  # the decoder's numbers are of a patch of mean 0 and deviation 1
        patches = cut_patches(images[:1], (4, 4))
        mean = patches.mean(-1, keepdims=True)
        deviation = jnp.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
        painted = (cut_patches(out.image[:1], (4, 4)) - mean) / deviation
        hidden = want["masks"][0].ravel()
        np.testing.assert_allclose(painted[0, hidden], want["decoded"][hidden], atol=2e-4)
    elif not case["method"]:
        hidden = np.kron(want["masks"][0], np.ones([32 // len(want["masks"][0])] * 2)) > 0
        np.testing.assert_allclose(out.image[0][hidden], want["decoded"][hidden], atol=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_encoder_alone_is_any_model(name, tmp_path):
    path = parity.write(CASES[name], tmp_path)
    model, variables = vitswin_jax.load_pretrained(path, **CASES[name]["overrides"])
    _, whole = load_pretraining(path, **CASES[name]["overrides"])
    assert model.num_classes == 0
    ours, theirs = (flatten_dict(v["params"], sep="/") for v in (variables, whole))
    assert ours.keys() == {n.removeprefix("encoder/") for n in theirs if n.startswith("encoder/")}
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[f"encoder/{path}"])


def state_of(path):
    """Returns the tensors of a file without the keys above its state dict."""
    contents = read_tensors(path)
    return {
        name.removeprefix(contents.containers.get(name, "")): tensor
        for name, tensor in contents.tensors.items()
    }


WRITTEN = {"simmim_swin": "microsoft", "simmim_swinv2": "microsoft", "simmim_vit": "microsoft",
           "mae_vit": "timm"}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_read_is_written_back_under_the_same_names(name, tmp_path):
    case = CASES[name]
    source = parity.write(case, tmp_path)
    model, variables = load_pretraining(source, **case["overrides"])
    target = tmp_path / "back.pth"
    vitswin_jax.save_pretrained(target, model, variables, format=WRITTEN[name])
    theirs, ours = map(state_of, (source, target))
    assert ours.keys() == theirs.keys()
    for key, entry in case["entries"].items():
        assert ours[key].shape == tuple(entry["shape"])
        if entry["kind"] == "param":
            np.testing.assert_array_equal(ours[key].read(), theirs[key].read(), err_msg=key)
    again, _ = load_pretraining(target, **case["overrides"])
    assert again == model


def test_a_decoder_has_a_home_in_one_format(tmp_path):
    model, variables = load_pretraining(parity.write(CASES["mae_vit"], tmp_path))
    save = functools.partial(vitswin_jax.save_pretrained, tmp_path / "a.npz", model, variables)
    with pytest.raises(UserError, match="google has no decoder of mae; timm has it, and native"):
        save(format="google")


def test_a_file_without_a_decoder_says_so(tmp_path):
    case = CASES["mae_vit"]
    entries = {k: e for k, e in case["entries"].items() if not k.startswith("decoder")}
    path = parity.write(case | {"entries": entries}, tmp_path)
    with pytest.raises(UserError, match=r"mae_vit\.pth: has no decoder, so pre-training"):
        load_pretraining(path)


def test_images_are_given_as_mae_saw_them(tmp_path):
    """Its encoder looks like any ViT's, whose images lie in [-1, 1]; the decoder tells it apart."""
    path = parity.write(CASES["mae_vit"], tmp_path)
    assert vitswin_jax.load_metadata(path).preprocess.mean == (0.485, 0.456, 0.406)

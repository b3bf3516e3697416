"""Descendants of ViT and Swin give what timm, transformers and torchvision give, both ways.

The goldens are of write_zoo.py: small models, with the configurations that the libraries write.
"""

import gzip
import json
from pathlib import Path

import jax
import numpy as np
import parity
import pytest
import safetensors.numpy
from applied import apply
from kinds import mostly_long

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.pth_write import write_pth
from vitswin_jax.weights.formats.read import read_tensors

GOLDENS = Path(__file__).parents[1] / "goldens" / "weights"
CASES = json.loads(gzip.decompress((GOLDENS / "zoo.json.gz").read_bytes()))
SHORT = {
    "timm-dinov3_rectangle", "timm-eva02_clip", "timm-rope_mixed", "timm-pe_core", "timm-parts",
    "timm-relpos_shared", "timm-relpos_table", "timm-swinv2_cr_period", "huggingface-aimv2_native",
    "huggingface-dinov3_gated", "huggingface-beit_token", "torchvision-vit",
    "torchvision-swin_small_map",
}  # fmt: skip
"""The cases of each kind that every run tries; the others are long."""
READ_ONLY = ("huggingface-siglip2_naflex",)
UNREAD = ("mask_token", "relative_position_index", "relative_coords_table")
TOLERANCE = 2e-5  # of the standard deviation; the fixtures' own, ten roundings of float32


def case_params(names):
    return mostly_long(names, SHORT)


def write(case, folder, *, config=True):
    """Writes a case's folder; returns its tensors."""
    state = parity.make_state(case["entries"])
    if case["config"] is None:  # torchvision's
        write_pth(folder / "model.pth", state)
        return state
    safetensors.numpy.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        (folder / "config.json").write_text(json.dumps(case["config"]))
    return state


def tensors_of(path):
    """Returns the arrays of a file or of a folder."""
    file = path / "model.safetensors" if path.is_dir() else path
    return {name: tensor.read() for name, tensor in read_tensors(file).tensors.items()}


def load(case, path):
    arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in case["arguments"].items()
    }
    return vitswin_jax.load_pretrained(path, **arguments)


@pytest.mark.parametrize("name", case_params(CASES))
def test_a_folder_gives_the_originals_outputs_and_is_written_back(name, tmp_path):
    case, torchvision = CASES[name], name.startswith("torchvision")
    state = write(case, tmp_path)
    model, variables = load(case, tmp_path / "model.pth" if torchvision else tmp_path)
    with np.load(GOLDENS / "zoo.npz") as arrays:
        want = arrays[name]
    with jax.default_matmul_precision("highest"):
        got = apply(model, variables, parity.make_images(7, 2, *case["size"]))
    assert got.shape == want.shape
    assert np.abs(np.asarray(got, np.float64) - want).max() <= TOLERANCE * want.std()
    if name in READ_ONLY:
        return
    back = vitswin_jax.save_pretrained(
        tmp_path / ("back.pth" if torchvision else "back"),
        model,
        variables,
        format=name.partition("-")[0],
    )
    written = tensors_of(back)
    assert written.keys() == state.keys()
    for key in state.keys() - {key for key in state if key.endswith(UNREAD)}:
        if ".attn.qkv.bias" in key and name == "torchvision-swinv2":
            width = len(state[key]) // 3  # keys' thirds count for nothing
            state[key][width : 2 * width] = 0
        np.testing.assert_array_equal(written[key], state[key], err_msg=key)
    again = load(case, back)[0]
    assert again == model


@pytest.mark.parametrize("name", ["timm-dinov3", "timm-eva02_small", "timm-pe_core"])
def test_without_its_configuration_such_a_file_is_not_taken_for_a_plain_vit(name, tmp_path):
    write(CASES[name], tmp_path, config=False)
    with pytest.raises(UserError, match=r"give (the|a) name"):
        vitswin_jax.load_pretrained(tmp_path / "model.safetensors", num_heads=4)

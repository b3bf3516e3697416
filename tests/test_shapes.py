"""Images of other channels and shapes, from the folder through every command."""

import json

import numpy as np
import pytest
from PIL import Image

from vitswin_jax import load_metadata, load_pretrained
from vitswin_jax.cli import main

SMALL = (
    "--epochs=1", "--batch-size=8", "--data.eval_batch_size=8", "--img-size=16x24",
    "--model.patch_size=8", "--model.embed_dim=16", "--model.depth=1", "--model.num_heads=2",
)  # fmt: skip


def write_images(root, channels):
    """Two classes of eight images for training and two for testing: grey PNGs, or arrays."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 128, (20, 30, channels), np.uint8)
                pixels[..., -1] += 120 * (name == "light")
                path = root / split / name / f"{i}"
                if channels == 1:
                    Image.fromarray(pixels[..., 0]).save(path.with_suffix(".png"))
                else:
                    np.save(path.with_suffix(".npy"), pixels)
    return root


@pytest.mark.long
@pytest.mark.parametrize("channels", [1, pytest.param(6, marks=pytest.mark.long)])
def test_a_run_of_other_channels_and_its_weights_in_every_command(tmp_path, capsys, channels):
    data, run = write_images(tmp_path / "data", channels), str(tmp_path / "run")
    model = f"--model.in_chans={channels}"
    colours = ["--augment.rand_augment=rand-m9"] if channels == 1 else []
    train = ["train", "folder:vit_tiny_patch16_224", str(data), "--workdir", run]
    assert main([*train, model, *SMALL, *colours]) == 0
    assert load_metadata(run).preprocess.mean == (0.5,) * channels
    image = str(sorted((data / "test" / "dark").iterdir())[0])
    capsys.readouterr()
    assert main(["predict", run, image, "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    (line, *_) = capsys.readouterr().out.splitlines()
    assert {each["name"] for each in json.loads(line)["predictions"]} == {"dark", "light"}
    assert main(["predict", run, image, "--img-size", "24x16", "--json"]) == 0
    resized = capsys.readouterr().out.splitlines()[0]
    assert json.loads(resized)["predictions"] != json.loads(line)["predictions"]
    assert main(["evaluate", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    if channels == 1:
        return
    explained = ["--out", str(tmp_path / "explained"), "--img-size", "24x16"]
    assert main(["explain", run, image, *explained]) == 0
    program = str(tmp_path / "a.stablehlo")
    assert main(["export", run, program, "--uint8", "--images", image]) == 0
    assert f"uint8 (batch, 16, 24, {channels})" in capsys.readouterr().out
    assert main(["convert", run, str(tmp_path / "timm"), "--to", "timm", "--verify"]) == 0
    tuned = ["train", str(write_images(tmp_path / "grey", 1)), "--init-from", run]
    tuned += ["--workdir", str(tmp_path / "tuned"), "--epochs=1", "--batch-size=8"]
    assert main([*tuned, "--data.eval_batch_size=8", "--model.in_chans=1"]) == 0
    adapted = json.loads((tmp_path / "tuned" / "start.json").read_text("utf-8"))["adapted"]
    assert any(f"from {channels} input channels to 1: their sum" in line for line in adapted)
    tuned, _ = load_pretrained(tmp_path / "tuned")
    assert (tuned.in_chans, tuned.img_size) == (1, (16, 24))


def test_images_of_too_few_channels_are_named(tmp_path, capsys):
    data, run = write_images(tmp_path / "data", 1), str(tmp_path / "run")
    train = ["train", "folder:vit_tiny_patch16_224", str(data), "--workdir", run]
    assert main([*train, "--model.in_chans=4", *SMALL]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {data}/train/")
    assert "has 1 channel, and the model takes 4 (model.in_chans)" in error

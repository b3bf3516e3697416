"""`vitswin explain`: which files it writes, what they are of, and one line for each mistake."""

import base64
import io
import re
import sys

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from vitswin_jax.explain import pictures
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.save import save_pretrained
from vitswin_jax.weights.shapes import parameter_shapes


@pytest.fixture
def image(tmp_path, digits):
    path = tmp_path / "three.png"
    path.write_bytes(digits[3]["image"])
    return path


@pytest.fixture
def save_random(tmp_path):
    def save_random(name, **fields):
        model = create_model(name, img_size=16, embed_dim=16, num_classes=10, **fields)
        rng = np.random.default_rng(0)
        flat = {
            key: rng.normal(size=shape, scale=0.3).astype(np.float32)
            for key, shape in parameter_shapes(model).items()
        }
        variables = {"params": unflatten_dict(flat, sep="/")}
        return save_pretrained(tmp_path / f"{name}.safetensors", model, variables)

    return save_random


SWIN = {"patch_size": 2, "depths": (2, 1), "num_heads": (2, 4), "window_size": 3}


def written(folder):
    return sorted(path.name for path in folder.iterdir())


def test_vit(vitswin, workdir, image, tmp_path):
    out = tmp_path / "out"
    status, text, err = vitswin("explain", workdir, image, "--out", out)
    assert (status, err) == (0, "")
    assert text == f"{out / 'index.html'}: 6 pictures\n"
    of_image = [f"three.{part}.png" for part in ("gradcam", "heads", "rollout")]
    of_model = [f"model.{part}.png" for part in ("distance", "filters", "positions")]
    assert written(out) == ["index.html", *of_model, *of_image]
    page = (out / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)  # opens without a network
    inline = [
        base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)
    ]
    assert sorted(inline) == sorted(path.read_bytes() for path in out.glob("*.png"))
    for data in inline:
        with Image.open(io.BytesIO(data)) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 1  # not blank


@pytest.mark.long
def test_swin_has_a_picture_a_stage(vitswin, save_random, image, tmp_path):
    out = tmp_path / "out"
    weights = save_random("swinv2", **SWIN | {"pretrained_window_sizes": (0, 0)})
    only = "biases,distance,heads,windows,rollout"
    assert vitswin("explain", weights, image, "--out", out, "--only", only)[0] == 0
    assert written(out) == [
        "index.html",
        "model.biases.stage_0.png",
        "model.biases.stage_1.png",
        "model.distance.png",
        "three.heads.stage_0.png",
        "three.heads.stage_1.png",
        "three.rollout.png",
        "three.windows.png",
    ]


def test_without_attention_there_is_grad_cam(vitswin, save_random, image, tmp_path):
    out = tmp_path / "out"
    weights = save_random("swin_mlp", **SWIN | {"window_size": 4})
    assert vitswin("explain", weights, image, "--out", out)[0] == 0
    assert written(out) == ["index.html", "model.filters.png", "three.gradcam.png"]
    status, _, err = vitswin("explain", weights, image, "--out", out, "--only", "rollout,gradcam")
    assert status == 1
    assert "rollout: nothing to show of this SwinMlp, which has gradcam, filters." in err


def test_classes_are_named_by_number_or_name(vitswin, workdir, image, tmp_path):
    options = ("--only", "gradcam", "--out", tmp_path / "out")
    pages = {}
    for label in (None, "7", "2"):
        chosen = () if label is None else ("--class", label)
        assert vitswin("explain", workdir, image, *options, *chosen)[0] == 0
        pages[label] = (tmp_path / "out" / "index.html").read_text()
    predicted = re.search(r"Predicted (\d), \d+\.\d %\.</p>", pages[None])[1]
    others = [label for label in ("7", "2") if label != predicted]
    for label in others:
        assert f"Grad-CAM is of {label}," in pages[label]
    status, _, err = vitswin("explain", workdir, image, *options, "--class", "ten")
    assert status == 1
    assert re.fullmatch(
        r"error: --class=ten: .* has classes 0 to 9 and none of that name; they are 0, 1, .*\n", err
    )


def test_images_of_one_name_and_bad_ones(vitswin, workdir, image, tmp_path, digits, monkeypatch):
    for i, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.png").write_bytes(digits[i]["image"])

    class Stdin:
        buffer = io.BytesIO(digits[0]["image"])

    monkeypatch.setattr(sys, "stdin", Stdin)
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    out = tmp_path / "out"
    paths = (tmp_path / "a", bad, tmp_path / "b", "-", tmp_path / "missing.png")
    status, _, err = vitswin("explain", workdir, *paths, "--out", out, "--only", "rollout")
    assert status == 1
    assert err.count("\n") == 2
    assert "bad.png: not an image" in err
    assert "missing.png: cannot be read: No such file" in err
    names = ("model-2", "model-3", "stdin")
    assert written(out) == ["index.html", *(f"{name}.rollout.png" for name in names)]


def test_mistakes_write_nothing(vitswin, workdir, image, tmp_path):
    out = tmp_path / "out"
    for arguments, words in (
        ((workdir, image, "--only", "rolout"), "--only='rolout' must be one of rollout, gradcam"),
        ((tmp_path / "none.npz", image), "none.npz: no such file"),
        ((workdir, tmp_path / "none.png"), "none.png: cannot be read: No such file"),
    ):
        status, text, err = vitswin("explain", *arguments, "--out", out)
        assert (status, text, err.count("\n")) == (1, "", 1)
        assert words in err
        assert not out.exists()
    out.write_text("a file")
    status, _, err = vitswin("explain", workdir, image, "--out", out, "--only", "rollout")
    assert (status, err) == (1, f"error: --out={out}: File exists.\n")


@pytest.mark.long
def test_an_image_its_maps_and_its_classes_stand_side_by_side(
    vitswin, save_random, image, tmp_path
):
    weights = save_random("swin", **SWIN)
    assert vitswin("explain", weights, image, "--out", tmp_path / "out")[0] == 0
    page = (tmp_path / "out" / "index.html").read_text()
    views, folded = page.split('<div class="views">')[1].split("</div>", 1)
    original = re.search(r"data:image/webp;base64,([^\"]+)", views)[1]
    with Image.open(io.BytesIO(base64.b64decode(original))) as shown:
        assert shown.size == (16, 16) and np.asarray(shown).std() > 1
    assert re.findall(r"<b>([^<.]+)", views) == [
        "The image", "Attention rollout", "Grad-CAM",
    ]  # fmt: skip
    shares = [float(share) for share in re.findall(r"<td>([\d.]+) %</td>", views)]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)
    summaries = re.findall(r"<details( open)?><summary>([^<]+)</summary>", folded.split("<h2>")[0])
    assert [name for _, name in summaries] == ["Windows", "Heads", "Stage 1", "Stage 2"]


def test_colours_have_their_meaning_beside_them():
    image = np.full((32, 48, 3), 128, np.uint8)
    heat = np.arange(6.0).reshape(2, 3)
    figure = pictures.heat_on_image(image, heat, stride=(16, 16), least=1.0)
    view, bar = figure.axes
    assert [text.get_text() for text in bar.get_yticklabels()] == ["low", "high"]
    assert list(bar.get_yticks()) == [1.0, 5.0]
    assert view.images[-1].get_clim() == (1.0, 5.0)

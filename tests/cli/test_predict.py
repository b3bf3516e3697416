"""`vitswin predict`: names and probabilities of images, bad ones reported and passed over."""

import dataclasses
import functools
import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw
from PIL import Image
from scipy.special import expit, softmax
from web_server import serving

from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights.load import load_metadata
from vitswin_jax.weights.save import save_pretrained


@pytest.fixture
def images(tmp_path, digits):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i in range(18):  # more than a batch
        (folder / f"{i:02}.png").write_bytes(digits[i]["image"])
    (folder / "more" / "99.PNG").write_bytes(digits[99]["image"])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def expected(forward, data):
    """Computed by hand: Pillow's bicubic, [0, 255] to [-1, 1], the model, softmax."""
    with Image.open(io.BytesIO(data)) as image:
        resized = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    x = np.asarray(resized, np.float32)[None] / 127.5 - 1
    return softmax(forward(x)[0].astype(np.float64))


def test_probabilities_of_a_folder(vitswin, workdir, images, forward, digits):
    status, out, err = vitswin("predict", workdir, images, "--json", "--top-k", 10)
    assert (status, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    names = [f"{i:02}.png" for i in range(18)] + ["more/99.PNG"]
    assert [row["image"] for row in found] == [str(images / name) for name in names]
    for row, i in zip(found, [*range(18), 99], strict=True):
        want = expected(forward, digits[i]["image"])
        predictions = row["predictions"]
        assert [p["index"] for p in predictions] == np.argsort(-want).tolist()
        assert [p["name"] for p in predictions] == [str(p["index"]) for p in predictions]
        got = [p["probability"] for p in predictions]
        np.testing.assert_allclose(got, -np.sort(-want), atol=1e-4)


def test_table_names_the_top_classes(vitswin, workdir, images, forward, digits):
    status, out, _ = vitswin("predict", workdir, images / "03.png", "--top-k", 2)
    want = expected(forward, digits[3]["image"])
    first, second = np.argsort(-want)[:2]
    assert status == 0
    assert out.splitlines() == [
        str(images / "03.png"),
        f"  {first}  {100 * want[first]:6.2f} %",
        f"  {second}  {100 * want[second]:6.2f} %",
    ]


def test_dtype_is_that_of_the_computation(vitswin, vit, workdir, images, forward, digits):
    model, variables = vit
    low = jax.jit(functools.partial(model.clone(dtype=jnp.bfloat16).apply, train=False))
    status, out, err = vitswin("predict", workdir, images / "03.png", "--json", "--dtype=bfloat16")
    assert (status, err) == (0, "")
    got = [one["probability"] for one in json.loads(out)["predictions"]]
    want = expected(lambda x: np.asarray(low(variables, x)), digits[3]["image"])
    np.testing.assert_allclose(got, -np.sort(-want)[:5], atol=1e-6)
    exact = expected(forward, digits[3]["image"])
    assert np.abs(got + np.sort(-exact)[:5]).max() > 1e-5  # and not those of float32


def test_bad_images_are_reported_and_the_rest_is_done(vitswin, workdir, images, tmp_path):
    (images / "00.png").write_bytes(b"")
    (images / "05.png").write_bytes((images / "05.png").read_bytes()[:40])
    (tmp_path / "empty").mkdir()
    status, out, err = vitswin(
        "predict", workdir, images, tmp_path / "none.png", tmp_path / "empty", "--json"
    )
    assert status == 1
    assert len(out.splitlines()) == 17
    lines = err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("error: ") for line in lines)
    for line, name in zip(lines, ("00.png", "05.png", "none.png", "empty"), strict=True):
        assert name in line


def test_no_image_starts_a_program(vitswin, workdir, tmp_path, ghostscript, eps):
    (tmp_path / "cat.jpg").write_bytes(eps)
    status, out, err = vitswin("predict", workdir, tmp_path / "cat.jpg")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {tmp_path}/cat.jpg: not an image that can be read")
    assert not ghostscript.exists()


def test_patterns_that_no_shell_expanded(vitswin, workdir, images):
    _, out, _ = vitswin("predict", workdir, images / "0[12].png", images / "**/9?.PNG", "--json")
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == [
        "01.png", "02.png", "99.PNG"
    ]  # fmt: skip
    (images / "a[b].png").write_bytes((images / "00.png").read_bytes())
    status, out, _ = vitswin("predict", workdir, images / "a[b].png", "--json")
    assert (status, json.loads(out)["image"]) == (0, str(images / "a[b].png"))
    status, out, err = vitswin("predict", workdir, images / "z*")
    assert (status, out) == (1, "")
    assert err == f"error: {images / 'z*'}: no such file(s): {images / 'z*'}.\n"


def test_addresses(vitswin, workdir, images):
    with serving({"/a?b": (images / "00.png").read_bytes(), "/page": b"<html>"}) as site:
        addresses = [f"{site.address}/{name}" for name in ("a?b", "page", "none")]
        status, out, err = vitswin("predict", workdir, *addresses, images / "00.png", "--json")
    first, second = map(json.loads, out.splitlines())
    assert (status, first["image"]) == (1, addresses[0])
    assert first["predictions"] == second["predictions"]
    page, none = err.splitlines()
    assert f"{addresses[1]}: not an image" in page
    assert f"{addresses[2]}: the server answers 404" in none


def test_features_are_what_the_head_reads(vitswin, workdir, images, vit, forward, tmp_path):
    """The head is linear: its weights take the features to the logits."""
    (images / "05.png").write_bytes(b"")
    path = tmp_path / "f.npz"
    status, out, _ = vitswin("predict", workdir, images, "--features", path)
    assert status == 1
    assert out.splitlines()[-1] == f"features: {path} (18x16)"
    with np.load(path) as saved:
        features, paths = saved["features"], saved["paths"].tolist()
    assert (features.shape, features.dtype) == ((18, 16), np.float32)
    assert len(paths) == 18
    assert str(images / "05.png") not in paths
    head = vit[1]["params"]["head"]
    probabilities = softmax(features.astype(np.float64) @ head["kernel"] + head["bias"], -1)
    for name, got in zip(paths, probabilities, strict=True):
        want = expected(forward, Path(name).read_bytes())
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_contact_sheet(vitswin, workdir, images, tmp_path):
    path = tmp_path / "s.png"
    status, out, err = vitswin("predict", workdir, images, "--sheet", path)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"contact sheet: {path}"
    with Image.open(path) as image:
        assert image.width > 8 * 160
        assert image.height > 3 * 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sheet", "{folder}/none/s.png"], "cannot write"),
        (["--features", "{folder}"], "it is a folder"),
        (["--sheet", "{folder}/s.jpg"], "call it FILE.png"),
        (["--sheet", "{folder}/s.png"], "at most 1,000 images; these are 1,001."),
    ],
)
def test_what_cannot_be_written_is_known_before_the_work(
    vitswin, workdir, images, arguments, message
):
    arguments = [argument.format(folder=images) for argument in arguments]
    status, out, err = vitswin("predict", workdir, *[images / "00.png"] * 1001, *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_nothing_is_written_of_no_images(vitswin, workdir, tmp_path):
    arguments = [tmp_path / "none.png", "--features", tmp_path / "f.npz"]
    status, out, err = vitswin("predict", workdir, *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert not (tmp_path / "f.npz").exists()


def test_classes_that_may_be_several_have_each_their_probability(
    vitswin, workdir, vit, images, forward, tmp_path
):
    """Also on the page that explains them."""
    metadata = load_metadata(workdir)
    provenance = {**metadata.provenance, "multi_label": True}
    save_pretrained(workdir, *vit, metadata=dataclasses.replace(metadata, provenance=provenance))
    _, out, _ = vitswin("predict", workdir, images / "00.png", "--json", "--top-k", 10)
    got = np.array([p["probability"] for p in json.loads(out)["predictions"]])
    with Image.open(images / "00.png") as image:
        resized = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    logits = forward(np.asarray(resized, np.float32)[None] / 127.5 - 1)[0]
    want = -np.sort(-expit(logits.astype(np.float64)))
    np.testing.assert_allclose(got, want, atol=1e-4)
    page = tmp_path / "page"
    options = ("--only", "gradcam", "--out", page)
    assert vitswin("explain", workdir, images / "00.png", *options)[0] == 0
    assert f", {100 * want[0]:.1f} %.</p>" in (page / "index.html").read_text()


def test_a_name_says_how_a_plain_vits_images_are_given(vitswin, tmp_path, images):
    """DeiT's file looks like any ViT's, and its images have ImageNet's statistics."""
    model = create_model(
        "vit", img_size=16, patch_size=4, embed_dim=192, depth=1, num_heads=3, num_classes=10
    )
    variables, path = draw(model, scale=0.1), tmp_path / "a.pth"
    save_pretrained(path, model, variables, format="timm")
    arguments = ["predict", path, images / "00.png", "--json", "--top-k", 10]
    status, out, _ = vitswin(*arguments, "--model", "deit_tiny_patch16_224")
    assert status == 0
    pixels = Preprocess(
        img_size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_fraction=0.9
    )((images / "00.png").read_bytes())
    logits = np.asarray(model.apply(variables, jnp.asarray(pixels[None]))[0], np.float64)
    got = [p["probability"] for p in json.loads(out)["predictions"]]
    np.testing.assert_allclose(got, -np.sort(-softmax(logits)), atol=1e-4)
    assert vitswin(*arguments)[1] != out


def test_standard_input(vitswin, workdir, digits, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(digits[0]["image"])

    monkeypatch.setattr(sys, "stdin", Stdin)
    status, out, _ = vitswin("predict", workdir, "-", "--json")
    assert status == 0
    assert json.loads(out)["image"] == "-"


def test_without_names_classes_are_numbered(vitswin, tmp_path, vit, images):
    model, variables = vit
    path = save_pretrained(tmp_path / "bare.safetensors", model, variables)
    status, out, _ = vitswin("predict", path, images / "00.png", "--top-k", 1)
    assert status == 0
    assert out.splitlines()[1].startswith("  class ")


@pytest.mark.long
def test_a_published_models_classes_have_imagenets_names(vitswin, tmp_path, images):
    model = create_model("vit", img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    metadata = {"provenance": {"class_list": "imagenet1k"}}
    save_pretrained(tmp_path / "a.safetensors", model, variables, metadata=metadata)
    status, out, _ = vitswin("predict", tmp_path / "a.safetensors", images, "--top-k", 1)
    assert status == 0
    assert "tench, Tinca tinca" in out  # all are equally likely, and it is the first


def test_a_model_without_a_head_is_one_line(vitswin, tmp_path, vit, images):
    model, variables = vit
    params = {name: value for name, value in variables["params"].items() if name != "head"}
    path = save_pretrained(tmp_path / "a", model.clone(num_classes=0), {"params": params})
    status, out, err = vitswin("predict", path, images)
    assert (status, out) == (1, "")
    assert err == (
        f"error: {path}: the model has no head, so it predicts no classes; --features FILE.npz "
        "writes its features.\n"
    )
    status, out, err = vitswin("predict", path, images, "--features", tmp_path / "f.npz")
    assert (status, out, err) == (0, f"features: {tmp_path / 'f.npz'} (19x16)\n", "")

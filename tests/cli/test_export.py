"""`vitswin export`: a workdir as ONNX or StableHLO, compared; mistakes are one line."""

import sys

import numpy as np
import onnxruntime
import pytest
from PIL import Image


def test_a_run_as_onnx_with_int8_and_its_accuracy(vitswin, workdir, digits, forward, tmp_path):
    path = tmp_path / "digits.onnx"
    status, out, err = vitswin(
        "export",
        workdir,
        path,
        "--quantize",
        "int8",
        "--uint8",
        "--dataset",
        "--split",
        "test[:64]",
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{path}: vit, int8, one scale for each output channel, 0.0")
    assert lines[1] == (
        "takes images uint8 (batch, 16, 16, 3), in [0, 255]; gives logits float32 (batch, 10)"
    )
    assert lines[2].startswith("largest difference from JAX: ")
    assert lines[3].startswith("largest difference by int8: ")
    # The accuracies, by the runtime itself and by the model itself.
    assert lines[4] == "digits:test[:64], 64 images"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels, labels = pixels_of(digits, 64)
    rounded = session.run(["logits"], {"images": pixels})[0]
    logits = forward(pixels.astype(np.float32) / 127.5 - 1)
    for line, values in zip(lines[5:], (logits, rounded), strict=True):
        assert float(line.split()[1]) == pytest.approx(
            100 * (values.argmax(-1) == labels).mean(), abs=0.005
        )
    assert 0 < np.abs(rounded - logits).max() < 0.2 * logits.std()


@pytest.mark.long
def test_8_bit_products_take_their_ranges_from_images(vitswin, workdir, digits, tmp_path):
    """From a dataset's split or, without classes, from the images of a folder: as many, as near."""
    folder, path = tmp_path / "photos", tmp_path / "digits.onnx"
    folder.mkdir()
    for i, image in enumerate(pixels_of(digits, 5)[0]):
        Image.fromarray(image).save(folder / f"{i}.png")
    said = []
    for kind, *where in (
        ("int8-qdq", "--calibrate", folder),
        ("int8-qdq-symmetric", "--calibrate-split", "train[:40]"),
    ):
        status, out, err = vitswin("export", workdir, path, "--quantize", kind, *where)
        assert (status, err) == (0, "")
        said.append(out.splitlines())
    assert said[0][0] == f"ranges of activations from 5 images of {folder}"
    assert said[1][0] == "ranges of activations from 40 images of digits:train[:40]"
    for lines in said:
        assert lines[1].startswith(f"{path}: vit, int8 products, one scale for each output channel")
        assert lines[3].startswith("largest difference from JAX, before activations are rounded: ")
        assert lines[4].startswith("largest difference by int8: ")
    assert said[0][4] != said[1][4]  # of other ranges
    assert ["all zero points 0" in lines[1] for lines in said] == [False, True]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "a.stablehlo",
            ("--quantize", "int8-qdq-symmetric"),
            "--quantize int8-qdq-symmetric writes ONNX, not stablehlo",
        ),
        (
            "a.onnx",
            ("--calibrate", "digits"),
            "--calibrate is for --quantize int8-qdq or int8-qdq-symmetric",
        ),
        (
            "a.onnx",
            ("--quantize", "int8", "--calibrate-split", "train"),
            "--calibrate-split is for --quantize int8-qdq",
        ),
        ("a.onnx", ("--quantize", "int8-qdq", "--calibrate", "./none"), "./none"),
    ],
)
def test_what_calibration_cannot_have_is_one_line(
    vitswin, workdir, tmp_path, target, options, message
):
    status, out, err = vitswin("export", workdir, tmp_path / target, *options)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / target).exists()


def test_weights_of_no_known_training_need_images_to_calibrate(vitswin, vit, tmp_path):
    from vitswin_jax.weights.save import save_pretrained

    weights = tmp_path / "weights.safetensors"
    save_pretrained(weights, *vit)
    status, _, err = vitswin("export", weights, tmp_path / "a.onnx", "--quantize", "int8-qdq")
    assert status == 1
    assert err == (
        f"error: {weights}: does not state what it was trained on; name a dataset or a folder of "
        "images with --calibrate.\n"
    )


def pixels_of(source, count):
    from vitswin_jax.data.decode import decode_image

    records = [source[i] for i in range(count)]
    images = [Image.fromarray(decode_image(record["image"])) for record in records]
    pixels = [np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)) for image in images]
    return np.stack(pixels), np.array([record["label"] for record in records])


@pytest.mark.long
def test_stablehlo_at_another_size_and_on_given_images(vitswin, workdir, tmp_path):
    photo, path = tmp_path / "photo.png", tmp_path / "digits.stablehlo"
    Image.new("RGB", (40, 30), "orange").save(photo)
    status, out, err = vitswin("export", workdir, path, "--img-size", "20x16", "--images", photo)
    assert (status, err) == (0, "")
    assert "takes images float32 (batch, 20, 16, 3), normalised" in out
    assert out.splitlines()[2].endswith("over 4 images")
    assert path.stat().st_size > 10_000


@pytest.mark.long
def test_a_run_as_onnx_for_images_of_any_size(vitswin, workdir, tmp_path):
    path = tmp_path / "digits.onnx"
    status, out, err = vitswin("export", workdir, path, "--any-size", "--uint8")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].startswith("takes images uint8 (batch, height, width, 3), in [0, 255]; gives")
    assert " over 3 images and samples of " in lines[2]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": np.zeros((2, 32, 48, 3), np.uint8)})
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("a.onx", (), "a.onx: without --to, the suffix='onx' must be one of onnx, stablehlo"),
        ("a.tflite", (), "a.tflite: LiteRT's own tool makes a .tflite file, from a model that"),
        ("a.plan", (), "a.plan: TensorRT's own tool makes a .plan file, from a model that"),
        (
            "a.onnx",
            ("--any-size", "--img-size", "32"),
            "--any-size and --img-size cannot be given together",
        ),
        ("none/a.onnx", (), "cannot write "),
        ("run/model.safetensors", ("--to", "onnx"), "is the file to be exported"),
        ("a.onnx", ("--model", "swin_tiny_patch4_window7_224"), "is of the family swin"),
        ("a.onnx", ("--images", "none.png"), "none.png"),
    ],
)
def test_mistakes_are_one_line(vitswin, workdir, tmp_path, target, options, message):
    status, out, err = vitswin("export", workdir, tmp_path / target, *options)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_what_is_not_installed_is_named(vitswin, workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "vitswin_jax.export.onnx", raising=False)
    status, _, err = vitswin("export", workdir, tmp_path / "a.onnx")
    assert status == 1
    assert err == (
        "error: --to onnx needs the package onnxruntime; pip install 'vitswin_jax[export]'.\n"
    )

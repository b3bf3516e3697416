"""Arguments in the wrong order: a line that has them in the right one."""

import shlex

import pytest


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_weights_after_images(vitswin, workdir, command, tmp_path):
    photo = tmp_path / "some photo.jpg"
    for first in (photo, tmp_path / "photos"):
        status, out, err = vitswin(command, first, workdir)
        assert (status, out) == (1, "")
        swapped = shlex.join(["vitswin", command, str(workdir), str(first)])
        assert err == (
            f"error: {first} has no weights, but {workdir} has; weights come first: {swapped}.\n"
        )


def test_weights_after_the_dataset(vitswin, workdir, tmp_path):
    weights = workdir / "model.safetensors"
    status, _, err = vitswin("evaluate", tmp_path / "flowers", weights)
    assert status == 1
    assert f"weights come first: vitswin evaluate {weights} {tmp_path}/flowers." in err


def test_two_that_are_no_weights_are_not_swapped(vitswin, tmp_path):
    status, _, err = vitswin("predict", tmp_path / "none", tmp_path / "photo.jpg")
    assert status == 1
    assert err.startswith(f"error: {tmp_path}/none: no such file or folder")


def test_a_folder_may_have_the_name_of_a_collection(vitswin, tmp_path, monkeypatch):
    """As vit/photo.jpg does, which might be a published name and is none."""
    monkeypatch.chdir(tmp_path)
    for command in (("predict", "none", "vit/photo.jpg"), ("export", "none", "swin/a.onnx")):
        status, _, err = vitswin(*command)
        assert (status, err.startswith("error: none: no such file or folder")) == (1, True)


def test_the_program_before_the_weights(vitswin, workdir):
    status, _, err = vitswin("export", "digits.onnx", workdir)
    assert status == 1
    assert err == (
        f"error: digits.onnx has no weights, but {workdir} has; weights come first: vitswin export "
        f"{workdir} digits.onnx.\n"
    )

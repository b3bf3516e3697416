"""`vitswin convert`: any format to any other, verified; mistakes are one line."""

import hashlib

import pytest

import vitswin_jax
from vitswin_jax.cli import main
from vitswin_jax.cli.convert import FORMATS
from vitswin_jax.weights import write


@pytest.fixture
def npz(vit, tmp_path):
    model, variables = vit
    path = tmp_path / "a.npz"
    vitswin_jax.save_pretrained(path, model, variables, format="google")
    return path


def test_to_native_and_back(npz, tmp_path, capsys):
    native, pth = tmp_path / "a.safetensors", tmp_path / "a.pth"
    assert main(["convert", str(npz), str(native), "--verify"]) == 0
    out = capsys.readouterr().out
    assert f"{native}: vit from Google (vision_transformer)" in out
    assert "largest difference of the logits: 0 " in out
    metadata = vitswin_jax.load_metadata(native)
    assert metadata.provenance["sha256"] == hashlib.sha256(npz.read_bytes()).hexdigest()
    assert metadata.fields["act"] == "gelu_tanh"
    assert main(["convert", str(native), str(pth), "--to", "timm", "--verify"]) == 0
    assert "largest difference of the logits: 0 " in capsys.readouterr().out


def test_every_format_that_is_written_is_a_choice():
    assert set(FORMATS) == {"native", *write.FORMATS}


def test_another_size_and_head(npz, tmp_path):
    native = tmp_path / "a.safetensors"
    arguments = [str(npz), str(native), "--img-size", "32x16", "--num-classes", "3", "--verify"]
    assert main(["convert", *arguments]) == 0
    model, _ = vitswin_jax.load_pretrained(native)
    assert (model.img_size, model.num_classes) == ((32, 16), 3)
    assert vitswin_jax.load_metadata(native).preprocess.img_size == (32, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.npz", "a.npz"], "is the file to be converted"),
        (["none.npz", "b.npz"], "none.npz: no such file or folder"),
        (["a.npz", "b.pth", "--to", "microsoft"], "microsoft cannot hold vit"),
        (["a.npz", "b.npz", "--img-size", "18"], "img_size=18x18 is no multiple of patch_size=4x4"),
        (["a.npz", "b.npz", "--model", "vit_tyni"], "no model is called 'vit_tyni'"),
    ],
)
def test_mistakes_are_one_line(npz, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 1
    err = capsys.readouterr().err
    assert f"error: {message}" in err or message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_without_a_suffix_it_is_a_folder_that_is_verified_as_it_is(npz, tmp_path, format, capsys):
    folder = tmp_path / "folder"
    assert main(["convert", str(npz), str(folder), "--to", format, "--verify"]) == 0
    captured = capsys.readouterr()
    assert "largest difference of the logits: 0 " in captured.out
    assert (folder / "config.json").is_file()
    assert "act=" not in captured.err  # which the configuration states
    ours, theirs = (vitswin_jax.load_pretrained(path)[0] for path in (npz, folder))
    assert theirs.act == ours.act == "gelu_tanh"

"""`python -m vitswin_jax.data.prepare`: what it writes is what was there, or one line says why."""

from __future__ import annotations

import pytest

from vitswin_jax.data.prepare import main
from vitswin_jax.data.sources.open import open_source


@pytest.fixture
def flowers(tmp_path, write_folder):
    root = tmp_path / "Flowers 102"
    write_folder(root, {"tulip": 30, "aster": 20})
    return root


def run(capsys, *arguments):
    """Returns the exit status, standard output and standard error without progress bars."""
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, [line for line in err.splitlines() if line.startswith("error:")]


def test_folder_becomes_a_dataset_of_the_same_bytes(flowers, tmp_path, capsys):
    status, out, errors = run(capsys, flowers, "--data_dir", tmp_path / "tfds", "--seed", 5)
    assert (status, errors) == (0, [])
    directory = tmp_path / "tfds" / "flowers_102" / "1.0.0"
    assert out.splitlines()[-1].startswith("flowers_102: 2 classes; train ")
    assert out.splitlines()[-1].endswith(f" images; in {directory}")
    assert sorted(path.name for path in (tmp_path / "tfds").iterdir()) == ["flowers_102"]
    for split in ("train", "test"):
        folder = open_source(str(flowers), split=split, seed=5)
        for dataset in ("flowers_102", str(directory)):
            source = open_source(dataset, split=split, data_dir=tmp_path / "tfds")
            assert source.class_names == ("aster", "tulip")
            assert [source[i] for i in range(len(source))] == [
                folder[i] for i in range(len(folder))
            ]


def test_folder_keeps_its_own_splits(tmp_path, write_folder, capsys):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        write_folder(tmp_path / "birds" / split, {"owl": count, "wren": count})
    assert run(capsys, tmp_path / "birds", "--data_dir", tmp_path / "tfds")[0] == 0
    for split, count in (("train", 8), ("val", 4), ("test", 6)):
        assert len(open_source("birds", split=split, data_dir=tmp_path / "tfds")) == count


def test_digits(tmp_path, capsys):
    status, out, _ = run(capsys, "digits", "--data_dir", tmp_path)
    assert status == 0
    assert out == (
        f"digits: 10 classes; train 1,347, test 450 images; in {tmp_path}/digits/1.0.0\n"
    )


def error(capsys, *arguments):
    status, _, errors = run(capsys, *arguments)
    assert status == 1
    (line,) = errors
    return line


def test_unreadable_images_are_all_named_before_anything_is_written(flowers, tmp_path, capsys):
    bad = sorted(flowers.rglob("*.png"))[3:40:12]
    for path in bad:
        path.write_bytes(path.read_bytes()[:30])
    line = error(capsys, flowers, "--data_dir", tmp_path / "tfds")
    assert line.startswith("error: 4 image(s) cannot be read; mend or remove them: ")
    assert all(str(path) in line for path in bad)
    assert not (tmp_path / "tfds").exists()


def test_split_folders_with_other_classes(tmp_path, write_folder, capsys):
    write_folder(tmp_path / "birds" / "train", {"owl": 2, "wren": 2})
    write_folder(tmp_path / "birds" / "val", {"owl": 2})
    line = error(capsys, tmp_path / "birds", "--data_dir", tmp_path / "tfds")
    assert "birds:train alone has wren" in line


def test_dataset_that_exists_is_not_overwritten(flowers, tmp_path, capsys):
    arguments = (flowers, "--data_dir", tmp_path / "tfds")
    assert run(capsys, *arguments)[0] == 0
    assert "flowers_102/1.0.0: exists; remove it, or give another --name." in error(
        capsys, *arguments
    )
    assert run(capsys, *arguments, "--name", "again")[0] == 0


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_name_of_another_dataset(flowers, tmp_path, capsys, name):
    line = error(capsys, flowers, "--data_dir", tmp_path, "--name", name)
    assert line == f"error: name={name!r} is taken by another dataset; give another --name."


def test_name_that_tfds_does_not_take(tmp_path, write_folder, capsys):
    write_folder(tmp_path / "2024", {"a": 9, "b": 9})
    assert error(capsys, tmp_path / "2024").startswith("error: name='2024' is no dataset's name;")


def test_missing_folder(tmp_path, capsys):
    assert error(capsys, tmp_path / "no").startswith(f"error: {tmp_path}/no: no such folder;")


def test_unknown_name(tmp_path, capsys):
    line = error(capsys, "mnits", "--data_dir", tmp_path)
    assert line.endswith("did you mean 'mnist'?")


def test_place_that_cannot_be_written(flowers, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = error(capsys, flowers, "--data_dir", tmp_path / "file")
    assert "cannot be written to" in line
    assert "Not a directory" in line


SQUARES = """
import io
import tensorflow_datasets as tfds
from PIL import Image

class Squares(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        label = tfds.features.ClassLabel(num_classes=2)
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            data = io.BytesIO()
            Image.new("RGB", (4, 4), (i, i, i)).save(data, "PNG")
            data.seek(0)
            yield i, {"image": data, "label": i % 2}
"""


def test_builder_of_tfds_is_prepared_as_array_record(tmp_path, capsys, monkeypatch):
    """A builder that a user's package registers, as TFDS's own are registered."""
    (tmp_path / "squares_package").mkdir()
    (tmp_path / "squares_package" / "__init__.py").write_text(SQUARES)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("squares_package")
    status, out, _ = run(capsys, "squares", "--data_dir", tmp_path / "tfds")
    assert status == 0
    assert "squares: 2 classes; train 6 images; in" in out
    source = open_source("squares", split="train", data_dir=tmp_path / "tfds")
    assert sorted(source[i]["label"] for i in range(6)) == [0, 0, 0, 1, 1, 1]

"""The JSON of a dataset that TFDS prepared: damaged, or naming code, it is one line."""

from __future__ import annotations

import json
import shutil

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.prepare import prepare
from vitswin_jax.data.sources.open import open_source


@pytest.fixture(scope="module")
def packed(tmp_path_factory, write_folder):
    root = tmp_path_factory.mktemp("packed")
    write_folder(root / "flowers", {"a": 4, "b": 4})
    return prepare(str(root / "flowers"), data_dir=root / "prepared")


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "flowers" / "1.0.0")


def error(directory):
    with pytest.raises(UserError) as caught:
        source = open_source(str(directory), split="train")
        [source[i] for i in range(len(source))]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_whole(copy):
    assert len(open_source(str(copy), split="train")) == 6


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', '{"splits": 3, "featuresDict": []}'])
def test_damaged_json_is_named(copy, name, text):
    (copy / name).write_text(text)
    assert error(copy).startswith(str(copy))


def test_no_other_module_is_imported(copy, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nImage = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((copy / "features.json").read_text())
    features["featuresDict"]["features"]["image"]["pythonClassName"] = "foreign.Image"
    (copy / "features.json").write_text(json.dumps(features))
    assert 'pythonCla... is "foreign.Image", which does not fit' in error(copy)
    assert not (tmp_path / "imported").exists()


def test_missing_and_damaged_files_are_named(copy):
    file = next(copy.glob("*train*"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    assert "damaged; copy or prepare" in error(copy)
    file.unlink()
    assert "damaged; copy or prepare" in error(copy)

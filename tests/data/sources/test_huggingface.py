"""Datasets saved by Hugging Face's package: the bytes that were stored, and what is no dataset."""

from __future__ import annotations

import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.fingerprint import changes, fingerprint
from vitswin_jax.data.sources.huggingface import HuggingFaceSource
from vitswin_jax.data.sources.open import open_source


def png(value):
    data = io.BytesIO()
    Image.new("L", (3, 3), value).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


@pytest.fixture
def make(datasets):
    """Makes a dataset of images, the red of number i is i, with labels in some form."""

    def make(numbers, label=None, **columns):
        label = label or datasets.ClassLabel(names=["owl", "wren"])
        several = not isinstance(label, datasets.ClassLabel)
        rows = {
            "id": list(numbers),
            "photo": [{"bytes": png(i), "path": None} for i in numbers],
            "species": [[i % 2, *([1] if i == 2 else [])] if several else i % 2 for i in numbers],
        }
        features = {"id": datasets.Value("int64"), "photo": datasets.Image(), "species": label}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    return make


@pytest.mark.filterwarnings("ignore")  # what the package's own dependencies warn of
def test_splits_of_a_saved_dataset(datasets, make, tmp_path):
    both = datasets.DatasetDict({"train": make(range(9)), "validation": make(range(20, 24))})
    both.save_to_disk(str(tmp_path / "birds"))
    for dataset in (str(tmp_path / "birds"), f"hf:{tmp_path}/birds"):
        source = open_source(dataset, split="train")
        assert source.class_names == ("owl", "wren") and not source.multi_label
        assert [source[i] for i in range(9)] == [
            {"image": png(i), "label": i % 2} for i in range(9)
        ]
        assert source.describe(3) == f"{dataset}:train[3]"
        assert open_source(dataset, split="test")[1]["image"] == png(21)
        assert len(open_source(dataset, split="train[:33%]")) == 3
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert (
            list(pool.map(copy.__getitem__, [*range(9)] * 9)) == [source[i] for i in range(9)] * 9
        )
    with pytest.raises(UserError, match="no split 'trian'; there are train, validation"):
        open_source(str(tmp_path / "birds"), split="trian")


@pytest.mark.filterwarnings("ignore")
def test_an_undivided_dataset_is_divided_by_holdout(make, tmp_path):
    make(range(40)).save_to_disk(str(tmp_path / "birds"))
    parts = [open_source(str(tmp_path / "birds"), split=s) for s in ("train", "test")]
    keys = [part.key(i) for part in parts for i in range(len(part))]
    assert sorted(map(int, keys)) == list(range(40))


@pytest.mark.filterwarnings("ignore")
def test_a_list_of_classes_is_several_labels(datasets, make, tmp_path):
    label = datasets.List(datasets.ClassLabel(names=["owl", "wren"]))
    make(range(4), label).save_to_disk(str(tmp_path / "birds"))
    source = open_source(str(tmp_path / "birds"), split="all")
    assert source.multi_label and source.class_names == ("owl", "wren")
    assert [source.label(i) for i in range(4)] == [(0,), (1,), (0, 1), (1,)]


def error(dataset):
    with pytest.raises(UserError) as caught:
        source = open_source(str(dataset), split="all")
        [source[i] for i in range(len(source))]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_resume_knows_its_images_and_labels(make, tmp_path):
    def taken(place):
        return fingerprint(*(open_source(str(place), split=s) for s in ("train", "test")))

    made = make(range(12))
    made.save_to_disk(str(tmp_path / "a"))
    made.save_to_disk(str(tmp_path / "elsewhere" / "b"))
    made.select(range(11)).save_to_disk(str(tmp_path / "fewer"))
    before = taken(tmp_path / "a")
    assert before["train"]["images"] == sum(before["train"]["per_class"]) == 8
    assert changes(before, taken(tmp_path / "elsewhere" / "b"), "step 1") == ""
    assert "images, now " in changes(before, taken(tmp_path / "fewer"), "step 1")


@pytest.mark.filterwarnings("ignore")
def test_what_is_missing_is_one_line(datasets, make, tmp_path, monkeypatch):
    make(range(4)).rename_column("species", "s").remove_columns("s").save_to_disk(tmp_path / "a")
    assert "has the images photo and the class labels (none);" in error(tmp_path / "a")
    hidden = make(range(2)).map(lambda row: {"species": -1})
    hidden.save_to_disk(tmp_path / "b")
    assert "b:all[0]: has the label -1, which is outside [0, 2);" in error(tmp_path / "b")
    make(range(4)).save_to_disk(tmp_path / "c")
    (arrow,) = (tmp_path / "c").glob("*.arrow")
    arrow.write_bytes(b"x" * 99)
    assert "c: cannot be opened by the package datasets: " in error(tmp_path / "c")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs the package datasets; `pip install vitswin_jax[datasets]`" in error("hf:mnist")


@pytest.mark.filterwarnings("ignore")
def test_files_outside_of_a_saved_folder_need_a_flag(datasets, tmp_path):
    (tmp_path / "owl.png").write_bytes(png(3))
    rows = {"photo": [{"bytes": None, "path": str(tmp_path / "owl.png")}] * 2, "species": [0, 1]}
    label = datasets.ClassLabel(names=["owl", "wren"])
    columns = datasets.Features(
        {
            "photo": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "species": label,
        }
    )
    table = datasets.Dataset.from_dict(rows, features=columns)
    table.save_to_disk(str(tmp_path / "birds"))
    source = HuggingFaceSource(
        str(tmp_path / "birds"), "all", table.cast_column("photo", datasets.Image())
    )
    with pytest.raises(
        UserError, match=r"owl\.png, which is outside .* config\.data\.outside_files"
    ):
        source[0]
    source = HuggingFaceSource(
        str(tmp_path / "birds"),
        "all",
        table.cast_column("photo", datasets.Image()),
        outside_files=True,
    )
    assert source[0]["image"] == png(3)

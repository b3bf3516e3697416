"""Tables of paths and labels: one label or several, splits, and every way to write one wrongly."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.pipeline import make_eval_batches, make_train_iterator
from vitswin_jax.data.sources.open import check_same_classes, open_source


@pytest.fixture
def images(tmp_path, write_folder):
    """A folder with images/0/000.png, ..., images/0/009.png of ten colours."""
    write_folder(tmp_path / "images", {"0": 10})
    return tmp_path


def write(folder, text, name="labels.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def path(number):
    return f"images/0/{number:03d}.png"


def table(labels, *, header="path,label"):
    return "\n".join([header, *(f"{path(i)},{label}" for i, label in enumerate(labels))])


def members(source):
    return {
        source.key(i): [source.class_names[c] for c in np.atleast_1d(source[i]["label"])]
        for i in range(len(source))
    }


def test_records_are_the_rows(images):
    labels = ["rose", "aster", "rose", "tulip"]
    source = open_source(write(images, table(labels)), split="all")
    assert source.class_names == ("aster", "rose", "tulip")
    assert not source.multi_label
    assert members(source) == {path(i): [label] for i, label in enumerate(labels)}
    for i in range(4):
        assert source[i]["image"] == (images / path(i)).read_bytes()
        assert source.describe(i) == str(images / path(i))
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(4)] == [source[i] for i in range(4)]


def test_numbers_are_classes_in_the_order_of_numbers(images):
    source = open_source(write(images, table([10, 9, 2, 10])), split="all")
    assert source.class_names == ("2", "9", "10")
    assert [source.label(i) for i in range(4)] == [2, 1, 0, 2]


def test_a_folder_with_a_table_is_that_table(images):
    write(images, table("abab"))
    assert len(open_source(str(images), split="all")) == 4


def test_quotes_absolute_paths_marks_and_other_columns(images):
    text = f'\ufeffid,label,path\n7,"rose, red",{images / path(3)}\n8,aster,"images/0/001.png"\n'
    source = open_source(write(images, text), split="all")
    assert members(source) == {str(images / path(3)): ["rose, red"], path(1): ["aster"]}


def test_splits_are_those_of_a_column(images):
    rows = ["a,train", "b,train", "a,val", "b,val", "a,extra"]
    dataset = write(images, table(rows, header="path,label,split"))
    assert list(members(open_source(dataset, split="train"))) == [path(0), path(1)]
    assert list(members(open_source(dataset, split="test"))) == [path(2), path(3)]
    assert list(members(open_source(dataset, split="extra"))) == [path(4)]


def test_splits_are_those_of_several_tables(images):
    write(images, table("ab"), "my_train.csv")
    write(images, f"path,label\n{path(7)},a\n{path(8)},b\n{path(9)},b", "my_test.csv")
    dataset = str(images / "my_{train,test}.csv")
    assert [len(open_source(dataset, split=s)) for s in ("train", "test")] == [2, 3]


def test_several_labels_make_the_dataset_multi_label(images):
    labels = ["cat;indoors", "dog", "indoors; dog ;cat", "cat;cat"]
    source = open_source(write(images, table(labels)), split="all")
    assert source.multi_label
    assert source.class_names == ("cat", "dog", "indoors")
    assert [source[i]["label"] for i in range(4)] == [(0, 2), (1,), (0, 1, 2), (0,)]


def test_batches_of_several_labels_are_hot(images):
    source = open_source(write(images, table(["cat;indoors", "dog", "indoors"])), split="all")
    hot = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], np.float32)
    (batch,) = make_eval_batches(source, batch_size=4, preprocess=Preprocess((4, 5)))
    np.testing.assert_array_equal(batch["label"], [*hot, [0, 0, 0]])
    assert batch["label"].dtype == np.float32
    transform = TrainTransform((4, 5), crop="none", flip=False)
    train = make_train_iterator(source, batch_size=3, transform=transform, seed=0)
    batch = next(train)
    train.close()
    np.testing.assert_array_equal(batch["label"], hot[batch["image"][:, 0, 0, 0]])


def test_one_label_and_several_do_not_go_together(images):
    one, several = (
        open_source(write(images, table(labels), name), split="all")
        for labels, name in (("ab", "one.csv"), (["a;b", "b"], "several.csv"))
    )
    with pytest.raises(UserError, match=r"one\.csv:all has one label an image, .* several\."):
        check_same_classes(one, several)


def error(dataset, split="train"):
    with pytest.raises(UserError) as caught:
        open_source(dataset, split=split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_of_the_validation_split_alone(images):
    rows = ["a,train", "b,train", "c,val", "d,test", "a,test"]
    dataset = write(images, table(rows, header="path,label,split"))
    message = f"{dataset}:train: has no example of classes that other splits have: "
    for split in ("train", "val"):
        assert error(dataset, split) == f"{message}c in val; d in test."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it lacks path, label and has nothing."),
        ("image,class\na,b", "it lacks path, label and has image, class."),
        ("path,label\n", "has no rows"),
        (f"path,label\n{path(0)},a\n{path(1)}\n,b\n{path(2)},\n{path(3)},a,b\n{path(4)},a;;b",
         "wrong are line(s) 3, 4, 5, 6, 7."),
        (f"path,label\n{path(0)},a\nno/1.png,b\nno/2.png,b", "2 image(s) are not there: "),
        (f"path,label\n{path(0)},a\n{path(0)},b", f"several rows have {path(0)}."),
        (f'path,label\n{path(0)},"a', "is not CSV after line 1: unexpected end of data."),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_one_line(images, text, message):
    dataset = write(images, text)
    assert error(dataset).startswith(dataset)
    assert message in error(dataset)


def test_a_table_that_is_not_there_or_no_text(images):
    assert error(str(images / "no.csv")) == f"{images}/no.csv: no such file(s): {images}/no.csv."
    (images / "latin.csv").write_bytes("path,label\nä,b".encode("latin-1"))
    assert "latin.csv: is not UTF-8 text" in error(str(images / "latin.csv"))


def test_splits_by_name_and_by_column(images):
    dataset = write(images, table(["a,train"], header="path,label,split"), "train.csv")
    assert "by its name and by the column" in error(dataset)


def test_a_train_table_alone_has_no_test_split(images):
    dataset = write(images, table("ab"), "train.csv")
    assert error(dataset, "test").endswith(
        "no split 'test'; there are train; cut that: train[:75%] and train[75%:]."
    )


@pytest.mark.parametrize("outside", ["../other/0.png", "OTHER/0.png", "images/../../other/0.png"])
def test_files_outside_of_the_folder_need_a_flag(images, outside):
    other = images.parent / "other"
    other.mkdir(exist_ok=True)
    (other / "0.png").write_bytes((images / path(0)).read_bytes())
    outside = outside.replace("OTHER", str(other))
    dataset = write(images, f"path,label\n{path(1)},a\n{outside},b\n{outside},c")
    with pytest.raises(UserError) as caught:
        open_source(dataset, split="all")
    assert str(caught.value) == (
        f"{dataset}: line 3 names {outside} (and 1 more), which is outside of the table's folder; "
        "set config.data.outside_files=True (evaluate: --outside-files) to read such files."
    )
    dataset = write(images, f"path,label\n{path(1)},a\n{outside},b")
    assert len(open_source(dataset, split="all", outside_files=True)) == 2
    mixed = f"1*{dataset} + 1*{dataset}"
    assert len(open_source(mixed, split="all", outside_files=True)) == 4
    with pytest.raises(UserError, match="outside_files"):
        open_source(mixed, split="all")

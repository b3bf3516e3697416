"""Whose output is whose class: by name, by synset, by number; ReaL's labels."""

import json

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.data.sources.splits import Subset
from vitswin_jax.evaluate.classes import match_classes, reassess
from vitswin_jax.evaluate.evaluation import likeliest_of_several
from vitswin_jax.weights.published import class_names, synsets

WORDS, SYNSETS = class_names("imagenet1k"), synsets()


@pytest.fixture
def dataset(source):
    """Returns a source of no images, called "s", with classes of the given names."""

    def dataset(*names):
        part = Subset(source, np.arange(0), name="s")
        part.class_names = names
        return part

    return dataset


def test_by_name(dataset):
    assert match_classes(None, 3, dataset("a", "b", "c")).columns is None
    assert match_classes(("a", "b", "c"), 3, dataset("a", "b", "c")).columns is None
    match = match_classes(("c", "a", "b"), 3, dataset("a", "b", "c"))
    assert match.columns == (1, 2, 0) and match.note is None
    np.testing.assert_array_equal(match.select(np.array([[7.0, 8.0, 9.0]])), [[8, 9, 7]])
    with pytest.raises(UserError, match=r"^s: has 2 classes, the weights 3; not in both are c"):
        match_classes(("c", "a", "b"), 3, dataset("a", "b"))
    with pytest.raises(UserError, match=r"^s: has 2 classes, but the weights have 3"):
        match_classes(None, 3, dataset("a", "b"))


def test_weights_without_names_on_numbered_folders_are_noted(dataset):
    """torchvision sorts 10 before 2, timm after it; no weights say which they were trained by."""
    twelve = sorted(map(str, range(12)))
    assert (
        "0, 1, 10, 11, ..., as torchvision does" in match_classes(None, 12, dataset(*twelve)).note
    )
    assert match_classes(None, 3, dataset("0", "1", "2")).note is None
    assert match_classes(twelve, 12, dataset(*twelve)).note is None


def test_imagenets_classes_are_its_synsets():
    """The numbers are those everybody knows: n01440764 is 0, a toilet tissue 999."""
    assert (SYNSETS[0], SYNSETS[207], SYNSETS[999]) == ("n01440764", "n02099601", "n15075141")
    assert WORDS[207] == "golden retriever" and WORDS[999].startswith("toilet tissue")
    assert list(SYNSETS) == sorted(SYNSETS) and len(set(SYNSETS)) == 1000


# A model's outputs: unnamed, by words, by synset, and by words as a folder tells two cranes apart.
NAMES = {
    "none": None,
    "words": WORDS,
    "synsets": SYNSETS,
    "folder": tuple(
        word if WORDS.count(word) == 1 else f"{word} ({synset})"
        for word, synset in zip(WORDS, SYNSETS, strict=True)
    ),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_part_of_imagenet_by_its_synsets(names, dataset):
    """As ImageNet-A's folders, and R's, are called."""
    match = match_classes(names, 1000, dataset("n02099601", "n01440764"))
    assert match.columns == (207, 0)
    assert match.class_names == ("golden retriever", "tench, Tinca tinca")
    assert match.note.startswith("scored among the 2 of 1,000 classes")


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_whole_of_imagenet_in_order(names, dataset):
    match = match_classes(names, 1000, dataset(*SYNSETS))
    assert match.columns is None and match.note is None and match.validation


def test_numbers_are_sorted_as_text(dataset):
    """ImageNet-V2's folders: "0", "1", "10", "100", ..."""
    folders = sorted(str(number) for number in range(1000))
    match = match_classes(None, 1000, dataset(*folders))
    assert match.columns == tuple(int(name) for name in folders)
    assert match.class_names[2] == WORDS[10]
    assert "ImageNet-V2" in match.note and not match.validation


def test_microsofts_larger_head_has_imagenets_classes(dataset):
    columns = match_classes(None, 21841, dataset(*SYNSETS)).columns
    assert len(set(columns)) == 1000
    assert columns[:2] == (359, 368)  # its map22kto1k.txt begins so


@pytest.fixture
def validation(tmp_path, source):
    """Images of ImageNet's validation set, by their names: 1 and 3 of a class, 2 of another."""
    for number, synset in ((1, SYNSETS[5]), (2, SYNSETS[900]), (3, SYNSETS[5])):
        path = tmp_path / "imagenet" / "val" / synset / f"ILSVRC2012_val_{number:08}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source[number]["image"])
    return open_source(str(tmp_path / "imagenet"), split="val")


def write_real(path, **rows):
    table = [[] for _ in range(50_000)]
    for number, labels in rows.items():
        table[int(number[1:]) - 1] = labels
    path.write_text(json.dumps(table))
    return str(path)


def test_reals_labels_go_by_the_number_in_the_name(validation, tmp_path):
    source = reassess(validation, write_real(tmp_path / "real.json", _2=[7], _3=[900, 5]))
    assert len(source) == 2  # image 1 has no label
    found = {source.key(i).rpartition("_")[2]: source.label(i) for i in range(2)}
    assert found == {"00000002.JPEG": (7,), "00000003.JPEG": (5, 900)}
    assert [source[i]["label"] for i in range(2)] == [source.label(i) for i in range(2)]
    match = match_classes(None, 1000, source)
    assert match.columns is None and not match.validation


def test_any_of_several_labels_is_right():
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(likeliest_of_several(logits, labels), [1, 1])


def test_what_is_not_real(validation, source, tmp_path):
    path = tmp_path / "real.json"
    with pytest.raises(UserError, match=r"real\.json: "):
        reassess(validation, str(path))
    for text in ("[[1], [2]]", "no", "7", '{"a": 1}', "[" * 100_000, "[null]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"real\.json: is not ReaL's real\.json"):
            reassess(validation, str(path))
    with pytest.raises(UserError, match=r"real\.json: is not ReaL's"):
        reassess(validation, write_real(path, _1=[1000]))
    with pytest.raises(UserError, match=r"none of its images has a label"):
        reassess(validation, write_real(path, _7=[1]))
    write_real(path, _1=[1])
    with pytest.raises(UserError, match=r"are of ILSVRC2012_val_00000001\.JPEG and so on, not of"):
        reassess(source, str(path))

"""Fingerprints of data: equal where a run sees the same, and a line that says what is not."""

import json
import shutil
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.data import fingerprint as module
from vitswin_jax.data.fingerprint import changes, fingerprint
from vitswin_jax.data.sources.files import FileSource
from vitswin_jax.data.sources.open import open_source


def image(path, seed, size=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_folder(root):
    """Class folders in two splits, 12 images of 3 classes to train on, 6 to test."""
    for split, count in (("train", 4), ("test", 2)):
        for number, name in enumerate(("daisy", "rose", "tulip")):
            for i in range(count):
                image(root / split / name / f"{i}.png", 10 * number + i)
    return root


def write_undivided(root):
    """Class folders without splits."""
    for number, name in enumerate(("daisy", "rose", "tulip")):
        for i in range(8):
            image(root / name / f"{i}.png", 10 * number + i)
    return root


def write_table(root):
    """A table of the images, one with two labels."""
    folder = write_folder(root)
    lines = ["path,label,split"]
    for path in sorted(folder.glob("*/*/*.png")):
        split, label, _ = path.relative_to(folder).parts
        label += ";rose" if path.name == "0.png" and label != "rose" else ""
        lines.append(f"{path.relative_to(folder)},{label},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def write_shards(root):
    """A shard for each split."""
    folder = write_folder(root / "images")
    for split in ("train", "test"):
        with tarfile.open(root / f"{split}-0.tar", "w") as archive:
            for n, path in enumerate(sorted((folder / split).glob("*/*.png"))):
                label = path.with_suffix(".cls")
                label.write_text(path.parent.name)
                archive.add(path, f"{n:03d}.png")
                archive.add(label, f"{n:03d}.cls")
                label.unlink()
    shutil.rmtree(folder)
    return root


def taken(dataset, **where):
    """The fingerprint of a dataset's splits, as a checkpoint keeps it."""
    train, test = (open_source(str(dataset), split=s, **where) for s in ("train", "test"))
    return json.loads(json.dumps(fingerprint(train, test)))


WRITERS = (write_folder, write_undivided, write_table, write_shards)


@pytest.mark.parametrize("write", WRITERS)
def test_data_that_were_moved_are_the_same(tmp_path, write, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "here")
    before = taken(root)
    shutil.copytree(root, tmp_path / "there" / "deep")  # new times, new place
    shutil.rmtree(root)
    assert changes(before, taken(tmp_path / "there" / "deep"), "step 3") == ""
    total = before["train"]["images"] + before["test"]["images"]
    assert total == (24 if write is write_undivided else 18)
    several = 2 * 5 if write is write_table else 0  # 0.png of two of the three, in both splits
    counted = sum(before["train"]["per_class"]) + sum(before["test"]["per_class"])
    assert counted == total + (several and 4)


def resave(path):
    image(path, 99, size=9)


FOLDER_CHANGES = [
    (lambda root: image(root / "train/rose/9.png", 1),
     "its training data changed since step 3: 12 images, now 13; 'rose' had 4 images, now 5"),
    (lambda root: (root / "train/rose/3.png").unlink(),
     "its training data changed since step 3: 12 images, now 11; 'rose' had 4 images, now 3"),
    (lambda root: (root / "train/rose/3.png").rename(root / "train/daisy/33.png"),
     "its training data changed since step 3: 'daisy' had 4 images, now 5; "
     "'rose' had 4 images, now 3"),
    (lambda root: (root / "train/rose/3.png").rename(root / "train/rose/7.png"),
     "its training data changed since step 3: images have other names or another order"),
    (lambda root: resave(root / "train/rose/3.png"),
     "its training data changed since step 3: files have other sizes"),
    (lambda root: [(root / s / "rose").rename(root / s / "violet") for s in ("train", "test")],
     "its training data changed since step 3: classes 'violet' added, 'rose' removed"),
    (lambda root: [image(root / s / "violet/1.png", 1) for s in ("train", "test")],
     "its training data changed since step 3: 12 images, now 13; classes 'violet' added; "
     "its test data changed since step 3: 6 images, now 7"),
    (lambda root: image(root / "test/rose/9.png", 1),
     "its test data changed since step 3: 6 images, now 7; 'rose' had 2 images, now 3"),
    (lambda root: resave(root / "test/rose/1.png"),
     "its test data changed since step 3: files have other sizes"),
    (lambda root: (root / "classes.txt").write_text("daisy Bellis\nrose Rosa\ntulip Tulipa\n"),
     "its training data changed since step 3: classes 'Bellis', 'Rosa', 'Tulipa' added, "
     "'daisy', 'rose', 'tulip' removed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), FOLDER_CHANGES, ids=range(len(FOLDER_CHANGES)))
def test_what_changed_in_a_folder_is_said(tmp_path, change, line):
    root = write_folder(tmp_path / "a")
    before = taken(root)
    change(root)
    assert changes(before, taken(root), "step 3") == line


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("train/rose/1.png,rose", "train/rose/1.png,tulip",
         "'rose' had 6 images, now 5; 'tulip' had 4 images, now 5"),
        ("train/rose/1.png,rose,train\n", "", "12 images, now 11; 'rose' had 6 images, now 5"),
        ("train/rose/1.png,rose,train\ntrain/rose/2.png,rose,train\n",
         "train/rose/2.png,rose,train\ntrain/rose/1.png,rose,train\n",
         "images have other names or another order"),
    ],
)  # fmt: skip
def test_what_changed_in_a_table_is_said(tmp_path, old, new, line):
    root = write_table(tmp_path)
    before = taken(root)
    text = (root / "labels.csv").read_text()
    assert old in text
    (root / "labels.csv").write_text(text.replace(old, new))
    told = changes(before, taken(root), "step 3")
    assert told.startswith(f"its training data changed since step 3: {line}"), told


def test_two_labels_that_change_places_are_seen(tmp_path):
    """As many images of each class, of the same names."""
    root = write_table(tmp_path)
    before = taken(root)
    text = (root / "labels.csv").read_text()
    text = text.replace("train/rose/1.png,rose", "train/rose/1.png,@")
    text = text.replace("train/tulip/1.png,tulip", "train/tulip/1.png,rose").replace("@", "tulip")
    (root / "labels.csv").write_text(text)
    told = changes(before, taken(root), "step 3")
    assert told == "its training data changed since step 3: images have other labels"


def test_shards_are_known_by_their_members(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path / "cache"))
    root = write_shards(tmp_path / "a")
    before = taken(root)
    (root / "train-0.tar").rename(root / "train-1.tar")
    assert "other names" in changes(before, taken(root), "step 3")


def test_mixtures_are_known_by_their_parts_and_weights(tmp_path):
    for name in ("a", "b"):
        write_folder(tmp_path / name)
    mixture = "{} * {}/a + 0.4 * {}/b"
    before = taken(mixture.format(0.6, tmp_path, tmp_path))
    assert changes(before, taken(mixture.format(0.6, tmp_path, tmp_path)), "x") == ""
    other = changes(before, taken(mixture.format(0.5, tmp_path, tmp_path)), "step 3")
    assert "the parts of the mixture have other weights" in other
    (tmp_path / "b" / "train" / "rose" / "3.png").unlink()
    now = changes(before, taken(mixture.format(0.6, tmp_path, tmp_path)), "step 3")
    assert "24 images, now 23; 'rose' had 8 images, now 7" in now


def test_prepared_data_are_known_without_a_record_being_read(digits_root, monkeypatch):
    from vitswin_jax.data.sources.tfds import TfdsSource

    monkeypatch.setattr(TfdsSource, "__getitem__", lambda *_: pytest.fail("a record was read"))
    digits = taken("digits", data_dir=digits_root)
    assert digits["train"]["images"] == 1347 and digits["test"]["images"] == 450
    assert changes(digits, taken("digits", data_dir=digits_root), "x") == ""
    parity = taken("digits_parity", data_dir=digits_root)
    assert "classes 'even', 'odd' added" in changes(digits, parity, "x")


def test_classes_in_another_order_are_other_data():
    split = {"images": 2, "per_class": [1, 1], "digests": {}}
    one, other = ({"classes": c, "train": split, "test": split} for c in (["a", "b"], ["b", "a"]))
    assert changes(one, other, "step 1") == (
        "its training data changed since step 1: the classes are in another order"
    )


def test_names_are_equal_however_a_system_spells_accents(tmp_path):
    files = [[("caf\u00e9.png", 0)], [("cafe\u0301.png", 0)]]
    one, other = (FileSource(tmp_path, f, ("a",), "x") for f in files)
    assert fingerprint(one, one) == fingerprint(other, other)


def test_a_line_stays_short_however_much_changed():
    classes = [f"{'long' * 30}{n}" for n in range(2000)]
    split = {"images": 9, "per_class": [1] * 2000, "digests": {}}
    before = {"classes": classes, "train": split, "test": split}
    other = split | {"images": 8, "per_class": [2] * 2000}
    now = {"classes": classes, "train": other, "test": other}
    assert len(changes(before, now, "step 1")) < 1500
    assert len(changes(before, now | {"classes": [*classes[::-1], "x"]}, "step 1")) < 1500


def test_a_million_images_take_seconds_and_few_files_are_asked(monkeypatch):
    files = [(f"n{i % 1000:04d}/{i}.JPEG", i % 1000) for i in range(300_000)]
    source = FileSource("nowhere", files, tuple(f"n{i:04d}" for i in range(1000)), "x")
    asked = []
    monkeypatch.setattr("vitswin_jax.data.sources.files._size", asked.append)
    began = time.process_time()
    module.fingerprint(source, source)
    assert time.process_time() - began < 10
    assert len(asked) == 2 * 10_000

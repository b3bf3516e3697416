"""Folders of class folders: who belongs to which split, and what is wrong with a folder."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.formats import FORMATS
from vitswin_jax.data.sources.folders import open_folder
from vitswin_jax.data.sources.open import check_same_classes, open_source


def members(root, split, **options):
    """Returns the paths of a split relative to the folder, with their class names."""
    source = open_source(str(root), split=split, **options)
    return {
        Path(source.describe(i)).relative_to(root).as_posix(): source.class_names[
            source[i]["label"]
        ]
        for i in range(len(source))
    }


@pytest.fixture
def flowers(tmp_path, write_folder):
    root = tmp_path / "flowers"
    write_folder(root, {"tulip": 80, "aster": 60, "rose": 60})
    return root


def test_records_are_the_files(flowers):
    source = open_source(str(flowers), split="train")
    assert source.class_names == ("aster", "rose", "tulip")
    for index in range(len(source)):
        path = Path(source.describe(index))
        assert source[index]["image"] == path.read_bytes()
        assert source.class_names[source[index]["label"]] == path.parent.name
        number = decode_image(source[index]["image"])[0, 0, 0]
        assert number == int(path.stem)


def test_a_quarter_of_each_class_is_held_out(flowers):
    train, test = members(flowers, "train", holdout=0.25), members(flowers, "test", holdout=0.25)
    assert not train.keys() & test.keys()
    assert len(train) + len(test) == 200
    assert Counter(test.values()) == {"tulip": 20, "aster": 15, "rose": 15}
    assert members(flowers, "val") == members(flowers, "validation") == test


@pytest.mark.parametrize(
    ("holdout", "held_out"),
    [(0.25, {"many": 10, "two": 1}), (0.01, {"many": 1, "two": 1}), (0.99, {"many": 40, "two": 1})],
)
def test_a_class_of_two_has_one_image_on_either_side(tmp_path, write_folder, holdout, held_out):
    write_folder(tmp_path, {"many": 41, "one": 1, "two": 2})
    test, train = (members(tmp_path, split, holdout=holdout) for split in ("test", "train"))
    assert Counter(test.values()) == held_out
    assert set(train.values()) == {"many", "one", "two"}


def test_division_is_reproducible_and_changes_with_the_seed(flowers):
    first = members(flowers, "test", seed=3)
    assert members(flowers, "test", seed=3) == first
    assert members(flowers, "test", seed=4) != first


def test_a_larger_holdout_only_adds(flowers):
    smaller, larger = (members(flowers, "test", holdout=part).keys() for part in (0.2, 0.4))
    assert smaller < larger


def test_division_is_pinned(flowers):
    """A run that is taken up again, on any machine, must hold out the same files."""
    assert sorted(members(flowers, "test", holdout=0.05)) == [
        "aster/099.png",
        "aster/116.png",
        "aster/118.png",
        "rose/140.png",
        "rose/142.png",
        "rose/190.png",
        "tulip/028.png",
        "tulip/065.png",
        "tulip/069.png",
        "tulip/078.png",
    ]


def test_a_file_that_goes_moves_one_other_of_its_class_at_most(flowers, tmp_path):
    before = members(flowers, "train")
    gone = next(path for path in before if path.startswith("rose"))
    (flowers / gone).rename(tmp_path / "gone.png")
    shutil.copytree(flowers / "aster", flowers / "zinnia")
    after = members(flowers, "train")
    kept = {path for path in after if not path.startswith("zinnia")}
    moved = kept ^ (before.keys() - {gone})
    assert len(moved) <= 1
    assert all(path.startswith("rose") for path in moved)


def test_division_does_not_depend_on_where_the_folder_lies(flowers, tmp_path):
    shutil.copytree(flowers, tmp_path / "elsewhere" / "copy")
    assert members(tmp_path / "elsewhere" / "copy", "test") == members(flowers, "test")


def test_split_folders_are_taken_as_they_are(tmp_path, write_folder):
    write_folder(tmp_path / "train", {"a": 3, "b": 2})
    write_folder(tmp_path / "val", {"a": 1, "b": 1})
    assert open_folder(str(tmp_path)).split_names == ("train", "val")
    assert len(members(tmp_path, "train")) == 5
    assert len(members(tmp_path, "test")) == 2  # the only one held out
    with pytest.raises(UserError, match=r"no split 'tset'; there are train, val\."):
        open_source(str(tmp_path), split="tset")


def test_test_and_val_are_kept_apart_where_both_are_there(tmp_path, write_folder):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        write_folder(tmp_path / split, {"a": count, "b": 1})
    assert [len(members(tmp_path, split)) for split in ("train", "val", "test")] == [4, 3, 2]
    with pytest.raises(UserError, match=r"no split 'validation'; there are train, test, val\."):
        open_source(str(tmp_path), split="validation")


def test_images_are_found_at_any_depth_and_in_any_case(tmp_path):
    for path in ("a/x/y/1.PNG", "a/2.JpEg", "b/3.webp", "b/notes.txt", "a/.thumbs/4.png",
                 "b/._5.png", ".git/6.png", "readme.png"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    both = members(tmp_path, "all")
    assert both == {"a/x/y/1.PNG": "a", "a/2.JpEg": "a", "b/3.webp": "b"}


def test_source_is_pickled_for_workers(flowers):
    source = open_source(str(flowers), split="test")
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.name, copy.class_names, len(copy)) == (
        source.name,
        source.class_names,
        len(source),
    )
    assert copy[np.int64(3)] == source[3]


def error(folder, **options):
    with pytest.raises(UserError) as caught:
        open_source(str(folder), **{"split": "train"} | options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "FOLDER")


def test_missing_folder(tmp_path):
    assert error(tmp_path / "no").startswith("FOLDER: no such folder; a folder of class folders")


def test_folder_without_class_folders(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "1.png")
    assert error(tmp_path).startswith(
        "FOLDER: contains no class folders; FOLDER/CLASS/IMAGE.jpg was"
    )


def test_every_empty_class_folder_is_named(flowers):
    (flowers / "dahlia").mkdir()
    (flowers / "lily" / "raw").mkdir(parents=True)
    (flowers / "lily" / "raw" / "1.cr2").touch()
    message = error(flowers)
    assert message.startswith("FOLDER: no images (")
    assert "in the class folder(s) dahlia, lily;" in message


def test_unknown_split(flowers):
    assert error(flowers, split="trian") == (
        "FOLDER: no split 'trian'; a dataset that is divided by holdout has train, test, val, "
        "validation (all the held-out part) and all."
    )


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.5, 25.0])
def test_holdout_out_of_range(flowers, holdout):
    assert f"holdout={holdout} must be a fraction above 0 and below 1" in error(
        flowers, holdout=holdout
    )


def test_nothing_to_hold_out(tmp_path, write_folder):
    write_folder(tmp_path, {"a": 1, "b": 1})
    assert "no image can be held out, because no class has two" in error(tmp_path, split="test")


@pytest.mark.parametrize(
    ("train", "test", "name"),
    [("Training", "Testing", "test"), ("TRAIN", "Val", "val"), ("train", "valid", "val"),
     ("Train", "Validation", "validation")],
)  # fmt: skip
def test_splits_as_people_call_them(tmp_path, write_folder, train, test, name):
    write_folder(tmp_path / train, {"a": 3, "b": 3})
    write_folder(tmp_path / test, {"a": 2, "b": 2})
    (tmp_path / "__MACOSX" / train).mkdir(parents=True)
    assert len(open_source(str(tmp_path), split="train")) == 6
    for split in (name, "test"):
        source = open_source(str(tmp_path), split=split)
        assert (len(source), source.class_names) == (4, ("a", "b"))


def test_folders_that_are_no_dataset(tmp_path, write_folder):
    write_folder(tmp_path / "flat", {"Train": 3, "Test": 3})
    assert "Test, Train have names of splits, but contain no class folders" in error(
        tmp_path / "flat"
    )
    write_folder(tmp_path / "outer" / "flower_photos", {"a": 3, "b": 3})
    line = error(tmp_path / "outer")
    assert "one folder, flower_photos, which has folders itself (a, b); give " in line
    write_folder(tmp_path / "one", {"cat": 3})
    assert "has one class, cat; a classifier needs two or more" in error(tmp_path / "one")
    for name in ("Train", "training", "test"):
        write_folder(tmp_path / "twice" / name, {"a": 1, "b": 1})
    assert "Train, training are the same split by their names" in error(tmp_path / "twice")


def test_links_to_folders_are_followed_once(tmp_path, write_folder):
    write_folder(tmp_path / "real", {"a": 3, "b": 3})
    (tmp_path / "links").mkdir()
    for name in "ab":
        (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "a" / "up").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "a" / "self").symlink_to(tmp_path / "real" / "a")
    found = sorted(members(tmp_path / "links", "all"))
    assert found == [f"{'ab'[i // 3]}/{i:03}.png" for i in range(6)]


def test_a_name_a_line_may_have_spaces(tmp_path, write_folder):
    write_folder(tmp_path, {"golden retriever": 2, "tabby cat": 2})
    (tmp_path / "classes.txt").write_text("golden retriever\ntabby cat\n")
    source = open_source(str(tmp_path), split="all")
    assert source.class_names == ("golden retriever", "tabby cat")


def test_file_that_vanished_is_named(flowers):
    source = open_source(str(flowers), split="train")
    path = Path(source.describe(5))
    path.unlink()
    with pytest.raises(UserError, match=rf"^{path}: cannot be read: No such file"):
        source[5]


SYNSETS = {"n01440764": 3, "n01443537": 2, "n03126707": 1, "n02012849": 2}


@pytest.fixture
def imagenet(tmp_path, write_folder):
    """ImageNet's layout: class folders to train on, and four images in a flat folder."""
    root = tmp_path / "imagenet"
    write_folder(root / "train", SYNSETS)
    (root / "val").mkdir()
    for number in range(1, 5):
        image = Image.new("RGB", (5, 4), (number, 0, 0))
        image.save(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    return root


VAL = ["n03126707", "n01440764", "n03126707", "n01443537"]  # as image after image is of
NAMED = [f"ILSVRC2012_val_{number:08d}.JPEG {name}" for number, name in enumerate(VAL, 1)]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("val/val.txt", NAMED[::-1]),
        ("val.txt", [f"val/{line}" for line in NAMED]),
        ("val.txt", [line.replace(".JPEG", "") for line in NAMED]),
        ("val.txt", [f"{line.split()[0]} {sorted(SYNSETS).index(line.split()[1])}"
                     for line in NAMED]),
        ("imagenet_2012_validation_synset_labels.txt", VAL),
        ("val/imagenet_2012_validation_synset_labels.txt", [*VAL, ""]),
        ("LOC_val_solution.csv", ["ImageId,PredictionString", *(
            f"{line.split()[0][:-5]},{line.split()[1]} 1 2 3 4 {line.split()[1]} 5 6 7 8"
            for line in NAMED)]),
    ],
)  # fmt: skip
def test_a_flat_validation_folder_has_the_classes_of_its_file(imagenet, name, lines):
    (imagenet / name).write_text("\n".join(lines))
    train = open_source(str(imagenet), split="train")
    assert train.class_names == tuple(sorted(SYNSETS))
    for split in ("val", "validation", "test"):
        source = open_source(str(imagenet), split=split)
        assert source.class_names == train.class_names
        assert [source.class_names[source[i]["label"]] for i in range(4)] == VAL
        assert source[2]["image"] == Path(source.describe(2)).read_bytes()
        assert source.describe(2).endswith("/val/ILSVRC2012_val_00000003.JPEG")


def test_a_flat_folder_alone_has_the_classes_that_occur(imagenet):
    (imagenet / "val" / "val.txt").write_text("\n".join(NAMED))
    source = open_source(str(imagenet / "val"), split="val")
    assert source.class_names == tuple(sorted(set(VAL)))
    assert len(open_source(str(imagenet / "val"), split="val[:50%]")) == 2


@pytest.mark.parametrize("name", ["classes.txt", "LOC_synset_mapping.txt"])
def test_class_folders_get_human_names_from_a_file(imagenet, name):
    (imagenet / "val.txt").write_text("\n".join(NAMED))
    lines = ["n01440764 tench, Tinca tinca", "n01443537 goldfish", "n03126707 crane", "n9 x",
             "n02012849 crane"]  # fmt: skip
    (imagenet / name).write_text("\n".join(lines))
    for split in ("train", "val"):
        assert open_source(str(imagenet), split=split).class_names == (
            "tench, Tinca tinca",
            "goldfish",
            "crane (n02012849)",
            "crane (n03126707)",
        )
    (imagenet / name).write_text("\n".join(lines[1:4]))
    assert error(imagenet) == (
        f"FOLDER/{name}: no class folder is called n01440764, n02012849; a line must be the name "
        "of a folder, or this name, a space and a readable name."
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "FOLDER/val: contains no class folders, and no val.txt or "),
        (["490", "361", "171", "822"], "FOLDER/val.txt: has only numbers, and ImageNet's are"),
        (VAL[:3], "FOLDER/val.txt: has 3 lines for 4 images;"),
        (NAMED[:2], "gives no class for ILSVRC2012_val_00000003.JPEG, ILSVRC2012_val_00000004"),
        ([f"{line} x" for line in NAMED], "FOLDER/val.txt: a line must be NAME CLASS, not ILSVRC"),
        (["n9", *VAL[1:]], "FOLDER/val.txt: has the class(es) n9, for which FOLDER/train has no"),
        ([f"{line.split()[0]} 4" for line in NAMED], "has the class 4, and 4 class folders are"),
    ],
)
def test_a_flat_folder_whose_classes_are_unclear(imagenet, lines, message):
    if lines is not None:
        (imagenet / "val.txt").write_text("\n".join(lines))
    assert message in error(imagenet, split="val")
    assert len(open_source(str(imagenet), split="train")) == 8


def test_a_class_folder_of_the_validation_split_alone(imagenet):
    (imagenet / "val" / "n9").mkdir()
    shutil.copy(next((imagenet / "val").glob("*.JPEG")), imagenet / "val" / "n9")
    sources = [open_source(str(imagenet), split=split) for split in ("train", "val")]
    with pytest.raises(UserError, match=r"imagenet:val alone has n9; .*imagenet:train alone has n"):
        check_same_classes(*sources)


@pytest.mark.skipif("HEIF" in FORMATS, reason="pillow-heif is installed")
def test_heic_pictures_that_are_not_read_are_counted(tmp_path, write_folder, caplog):
    write_folder(tmp_path, {"cat": 2, "dog": 2})
    for name in ("1.heic", "2.HEIC", "3.heif", "notes.txt"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    assert len(open_source(str(tmp_path), split="all")) == 4
    assert caplog.messages == [
        f"{tmp_path}: 3 file(s) are HEIF and are left out; to read them, `pip install pillow-heif`"
    ]


def test_arrays_are_images_where_there_are_no_pictures(tmp_path, flowers):
    array = np.zeros((4, 4, 6), np.uint8)
    for name in ("a", "b"):
        (tmp_path / "bands" / name).mkdir(parents=True)
        for i in range(4):
            np.save(tmp_path / "bands" / name / f"{i}.npy", array)
    source = open_source(str(tmp_path / "bands"), split="train", holdout=0.25)
    assert len(source) == 6
    np.testing.assert_array_equal(decode_image(source[0]["image"], channels=6), array)
    before = members(flowers, "train")
    np.save(flowers / "rose" / "mask.npy", array[..., 0])
    assert members(flowers, "train") == before
    assert open_source(str(flowers), split="train").left_out[str(flowers)] == {"no images: .npy": 1}

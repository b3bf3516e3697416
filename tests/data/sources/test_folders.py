"""Folders of class folders: who belongs to which split, and what is wrong with a folder."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import decode_image
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


def test_division_is_a_partition_of_about_the_fraction(flowers):
    train, test = members(flowers, "train", holdout=0.25), members(flowers, "test", holdout=0.25)
    assert not train.keys() & test.keys()
    assert len(train) + len(test) == 200
    assert 30 <= len(test) <= 70  # 50, give or take three deviations
    assert set(test.values()) == set(train.values()) == {"aster", "rose", "tulip"}
    assert members(flowers, "val") == members(flowers, "validation") == test


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
        "rose/142.png",
        "tulip/065.png",
        "tulip/069.png",
        "tulip/078.png",
    ]


def test_files_that_come_and_go_move_no_other(flowers, tmp_path):
    before = members(flowers, "train")
    gone = next(path for path in before if path.startswith("rose"))
    (flowers / gone).rename(tmp_path / "gone.png")
    shutil.copytree(flowers / "aster", flowers / "zinnia")
    after = members(flowers, "train")
    kept = {path for path in after if not path.startswith("zinnia")}
    assert kept == before.keys() - {gone}


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
        write_folder(tmp_path / split, {"a": count})
    assert [len(members(tmp_path, split)) for split in ("train", "val", "test")] == [3, 2, 1]
    with pytest.raises(UserError, match=r"no split 'validation'; there are train, test, val\."):
        open_source(str(tmp_path), split="validation")


def test_images_are_found_at_any_depth_and_in_any_case(tmp_path):
    for path in ("a/x/y/1.PNG", "a/2.JpEg", "b/3.webp", "b/notes.txt", "a/.thumbs/4.png",
                 "b/._5.png", ".git/6.png", "readme.png"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    both = members(tmp_path, "train", holdout=1e-9)
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
    assert error(tmp_path).startswith("FOLDER: holds no class folders; FOLDER/CLASS/IMAGE.jpg was")


def test_every_empty_class_folder_is_named(flowers):
    (flowers / "dahlia").mkdir()
    (flowers / "lily" / "raw").mkdir(parents=True)
    (flowers / "lily" / "raw" / "1.cr2").touch()
    message = error(flowers)
    assert message.startswith("FOLDER: no images (")
    assert "in the class folder(s) dahlia, lily;" in message


def test_unknown_split(flowers):
    assert error(flowers, split="trian") == (
        "FOLDER: no split 'trian'; what is divided by holdout has train, test, val, "
        "validation for the rest, and all."
    )


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.5, 25.0])
def test_holdout_out_of_range(flowers, holdout):
    assert f"holdout={holdout} must be a fraction above 0 and below 1" in error(
        flowers, holdout=holdout
    )


def test_class_with_nothing_to_train_on(tmp_path, write_folder):
    write_folder(tmp_path, {"many": 50, "one": 1, "two": 1})
    message = error(tmp_path, holdout=0.999, seed=0)
    assert "leaves no image to train on in" in message
    assert "one, two" in message


def test_nothing_held_out(tmp_path, write_folder):
    write_folder(tmp_path, {"a": 2})
    assert "holds out no image" in error(tmp_path, split="test", holdout=1e-9)


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
        f"FOLDER/{name}: names no class folder n01440764, n02012849; a line is a folder's name, a "
        "space and what it is called."
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "FOLDER/val: holds no class folders, and no val.txt or "),
        (["490", "361", "171", "822"], "FOLDER/val.txt: holds numbers alone, and ImageNet's are"),
        (VAL[:3], "FOLDER/val.txt: has 3 lines for 4 images;"),
        (NAMED[:2], "gives no class for ILSVRC2012_val_00000003.JPEG, ILSVRC2012_val_00000004"),
        ([f"{line} x" for line in NAMED], "FOLDER/val.txt: a line is NAME CLASS, not ILSVRC"),
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

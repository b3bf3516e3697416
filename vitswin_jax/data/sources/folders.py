"""Folders of class folders, and ImageNet's layout, whose validation folder is flat."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Mapping, Sequence

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import (
    IMAGE_SUFFIXES,
    FileSource,
    file_paths,
    folder_names,
    images_among,
    is_file,
    is_folder,
    is_remote,
    note_unread,
    read_text,
    why_left_out,
)
from vitswin_jax.data.sources.labels import listed
from vitswin_jax.data.sources.splits import ALL, HELD_OUT, SPELLINGS, TRAIN, Dataset

NAMES = ("classes.txt", "LOC_synset_mapping.txt")
"""Files with human names of class folders: a line is a folder's name, then what it is called, if
it is called otherwise."""

TRUTHS = (
    "val.txt",
    "validation.txt",
    "test.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
)
"""Files with the classes of a flat folder's images, in the folder or beside it."""


def is_written_like_a_path(dataset: str) -> bool:
    """Returns whether a dataset that is not there is still meant as a folder.

    "flowers/small" may be a name and its config for TFDS, "./flowers" cannot.
    """
    return is_remote(dataset) or dataset.startswith((".", "~", os.sep))


def open_folder(root: str) -> Dataset:
    """Returns a folder as a dataset, its records in the order of their files' names.

    `root/train/cat/1.jpg` belongs to the split "train"; beside `train`, a split's folder
    may be flat, `root/val/1.jpg`, where a file of `TRUTHS` gives the classes. Splits may be
    called otherwise, `root/Training` (`SPELLINGS`). Without them `root` holds the classes
    themselves. Links are followed; hidden files and folders are passed over.

    Raises UserError where a folder, or the images of a class, are missing, and for one class.
    """
    if not is_folder(root):
        raise UserError(f"{root}: no such folder; a folder of class folders was expected.")
    folders = folder_names(root)
    splits = _split_folders(root, folders)
    divided = [name for name, folder in splits.items() if folder_names(folder)]
    if not divided:
        if not folders and _truth_paths(root):
            return Dataset(root, {HELD_OUT[1]: functools.partial(_open_flat, root, root, root)})
        if len(splits) == len(folders) > 1:
            raise UserError(
                f"{root}: its folders {listed(folders)} have names of splits, but contain no "
                f"class folders; {root}/{folders[0]}/CLASS/IMAGE.jpg was expected."
            )
        return Dataset(root, {ALL: functools.partial(_open_classes, root, root, f"{root}:{ALL}")})
    more = [name for name in folders if f"{root}/{name}" not in splits.values()]
    splits |= {name: f"{root}/{name}" for name in more if folder_names(f"{root}/{name}")}
    return Dataset(
        root,
        {
            name: functools.partial(_open_classes, root, folder, f"{root}:{name}")
            if folder_names(folder)
            else functools.partial(_open_flat, root, folder, splits.get(TRAIN, ""))
            for name, folder in splits.items()
        },
    )


def _split_folders(root: str, folders: Sequence[str]) -> dict[str, str]:
    """Returns split -> folder, of the folders that are called as splits are."""
    called: dict[str, list[str]] = {}
    for name in folders:
        if split := SPELLINGS.get(name.casefold()):
            called.setdefault(split, []).append(name)
    for names in called.values():
        if len(names) > 1 and any(folder_names(f"{root}/{name}") for name in names):
            raise UserError(
                f"{root}: the folders {listed(names)} are the same split by their names; rename "
                "all but one of them."
            )
    order = [split for split in (TRAIN, *HELD_OUT) if split in called]
    return {split: f"{root}/{called[split][0]}" for split in order}


def _open_classes(root: str, folder: str, name: str) -> FileSource:
    """Returns all images below the class folders of a split's folder."""
    folders = folder_names(folder)
    if not folders:
        raise UserError(
            f"{folder}: contains no class folders; {folder}/CLASS/IMAGE.jpg was expected."
        )
    # Another split with one class is compared with "train" (`check_same_classes`).
    if len(folders) == 1 and name.endswith((f":{ALL}", f":{TRAIN}")):
        raise UserError(_one_class(folder, folders[0]))
    labels = {name: label for label, name in enumerate(folders)}
    paths = file_paths(folder, deep=True)
    images = images_among(path for path in paths if "/" in path)
    files = [(path, labels[path.partition("/")[0]]) for path in images]
    others = sorted(set(paths).difference(images))
    note_unread(folder, others)
    files.sort(key=lambda file: (file[1], file[0]))
    if empty := sorted(set(folders) - {folders[label] for _, label in files}):
        raise UserError(
            f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in the class folder(s) "
            f"{', '.join(empty)}; add some or remove the folder(s)."
        )
    names = _human_names(root, folders)
    return FileSource(folder, files, names, name, left_out=why_left_out(others))


def _one_class(folder: str, name: str) -> str:
    inside = folder_names(f"{folder}/{name}")
    if inside:
        return (
            f"{folder}: all its images are in one folder, {name}, which has folders itself "
            f"({listed(inside)}); give {folder}/{name}."
        )
    return f"{folder}: has one class, {name}; a classifier needs two or more."


def _human_names(root: str, folders: Sequence[str]) -> tuple[str, ...]:
    """Returns the readable names of class folders, by a file of `NAMES` if there is one."""
    path = next((f"{root}/{name}" for name in NAMES if is_file(f"{root}/{name}")), None)
    if path is None:
        return tuple(folders)
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if set(lines) == set(folders):  # a name a line, which may have spaces
        return tuple(folders)
    pairs = (line.partition(" ") for line in lines)
    names = {folder: (name.strip() or folder) for folder, _, name in pairs}
    if missing := [folder for folder in folders if folder not in names]:
        raise UserError(
            f"{path}: no class folder is called {listed(missing)}; a line must be the name of a "
            "folder, or this name, a space and a readable name."
        )
    called = [names[folder] for folder in folders]
    # ImageNet has two classes "crane".
    return tuple(
        name if called.count(name) == 1 else f"{name} ({folder})"
        for name, folder in zip(called, folders, strict=True)
    )


def _truth_paths(*folders: str) -> list[str]:
    paths = [f"{folder}/{name}" for folder in folders for name in TRUTHS]
    return [path for path in paths if is_file(path)]


def _open_flat(root: str, folder: str, train: str) -> FileSource:
    """Returns the images of a flat folder with the classes that a file of `TRUTHS` gives.

    `train` is the folder of the split to train on, whose class folders count the classes.
    """
    split = folder.rpartition("/")[2]
    truths = _truth_paths(folder, root)
    own = [path for path in truths if path.endswith((f"/{split}.txt", ".csv", "_labels.txt"))]
    if not own:
        raise UserError(
            f"{folder}: contains no class folders, and no {' or '.join(TRUTHS)} in it or beside "
            "it gives the class of each image; such a file has one line per image, CLASS or "
            "NAME CLASS."
        )
    images = images_among(file_paths(folder, deep=False))
    classes = _read_truth(own[0], images)
    folders = folder_names(train) if train and train != root else []
    numbered = all(name.isdecimal() for name in classes.values())
    if not folders and numbered:
        raise UserError(
            f"{own[0]}: gives classes by number, but {train} has no class folders to number; "
            "write the names of the classes."
        )
    folders = folders or sorted(set(classes.values()))
    if numbered and not set(classes.values()) <= set(folders):
        classes = _by_number(own[0], classes, folders)
    if unknown := sorted(set(classes.values()) - set(folders)):
        raise UserError(
            f"{own[0]}: has the class(es) {listed(unknown)}, for which {train} has no folder."
        )
    labels = {name: label for label, name in enumerate(folders)}
    files = [(path, labels[classes[path]]) for path in images]
    return FileSource(folder, files, _human_names(root, folders), f"{root}:{split}")


def _read_truth(path: str, images: Sequence[str]) -> Mapping[str, str]:
    """Returns the class of each image: as written, or by the images' order."""
    text = read_text(path)
    if path.endswith(".csv"):  # Kaggle's: ImageId, then the class before each box
        rows = [(row[0], row[1].split()[:1]) for row in list(csv.reader(text.splitlines()))[1:]]
        lines = [(name, *first) for name, first in rows]
    else:
        lines = [tuple(line.split()) for line in text.splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        if lines and all(line[0].isdecimal() for line in lines):
            raise UserError(
                f"{path}: has only numbers, and ImageNet's are not in the order of its class "
                "folders; lines SYNSET or NAME SYNSET were expected."
            )
        if len(lines) != len(images):
            raise UserError(
                f"{path}: has {len(lines):,} lines for {len(images):,} images; one line per "
                "image, in the order of their names, was expected."
            )
        return {image: line[0] for image, line in zip(images, lines, strict=True)}
    if wrong := [" ".join(line) for line in lines if len(line) != 2]:
        raise UserError(f"{path}: a line must be NAME CLASS, not {listed(wrong)}.")
    classes = {name.rpartition("/")[2]: label for name, label in lines}
    classes |= {name.rpartition(".")[0]: label for name, label in classes.items() if "." in name}
    found = {name: classes.get(name, classes.get(name.rpartition(".")[0], "")) for name in images}
    if missing := [image for image, label in found.items() if not label]:
        raise UserError(f"{path}: gives no class for {listed(missing)}.")
    return found


def _by_number(path: str, classes: Mapping[str, str], folders: Sequence[str]) -> dict[str, str]:
    """Returns classes by name where they are numbers, of the class folders in sorted order."""
    most = max(int(number) for number in classes.values())
    if most >= len(folders):
        raise UserError(
            f"{path}: has the class {most}, and {len(folders)} class folders are numbered from 0."
        )
    return {name: folders[int(number)] for name, number in classes.items()}

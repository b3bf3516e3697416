"""Folders of class folders, divided into splits by hand or by a fraction."""

from __future__ import annotations

import hashlib
import operator
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import SupportsIndex

from vitswin_jax.types import Record, UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
TRAIN, HELD_OUT = "train", ("test", "val", "validation")


def is_folder(dataset: str) -> bool:
    """Returns whether a dataset is meant as a folder: it is one, or is written like a path.

    "flowers/small" may be a name and its config for TFDS, "./flowers" cannot.
    """
    return Path(dataset).expanduser().is_dir() or dataset.startswith((".", "~", os.sep))


def folder_splits(root: Path) -> tuple[str, ...]:
    """Returns the splits of a folder: those it is divided into, or those made by holding out."""
    return _divided(root) or (TRAIN, HELD_OUT[0])


class FolderSource:
    """One split of a folder whose sub-folders are the classes."""

    def __init__(
        self, root: Path, files: Sequence[tuple[str, int]], class_names: tuple[str, ...], name: str
    ) -> None:
        self._root, self._files = root, files  # paths relative to root, with their classes
        self.class_names, self.name = class_names, name

    @classmethod
    def open(cls, root: Path, *, split: str, holdout: float, seed: int) -> FolderSource:
        """Returns the split of a folder, in the order of its files' names.

        `root/train/cat/1.jpg` belongs to the split "train"; "test", "val" and
        "validation" stand for one another where only one of them is there. Where `root`
        holds the classes themselves, an image is held out with the probability `holdout`
        by a hash of `seed` and its path, so a file that comes or goes moves no other.
        Hidden files and folders are passed over.

        Raises UserError where a folder, a class's images or the split are missing.
        """
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; a folder of class folders was expected.")
        divided = _divided(root)
        if divided:
            folder = root / _split_folder(root, split, divided)
            files, class_names = _scan(folder)
            return cls(folder, files, class_names, f"{root}:{split}")
        if split != TRAIN and split not in HELD_OUT:
            raise UserError(
                f"{root}: no split {split!r}; a folder that is divided by holdout has "
                f"{TRAIN}, and {', '.join(HELD_OUT)} for the rest."
            )
        if not 0 < holdout < 1:
            raise UserError(f"{root}: holdout={holdout} must be a fraction above 0 and below 1.")
        files, class_names = _scan(root)
        chosen = [
            (path, label)
            for path, label in files
            if _is_held_out(path, holdout=holdout, seed=seed) == (split != TRAIN)
        ]
        _check_division(root, chosen, class_names, split=split, holdout=holdout, seed=seed)
        return cls(root, chosen, class_names, f"{root}:{split}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: SupportsIndex) -> Record:
        path, label = self._files[operator.index(index)]
        try:
            return Record(image=(self._root / path).read_bytes(), label=label)
        except OSError as error:
            raise UserError(f"{self._root / path}: cannot be read: {error.strerror}.") from error

    def describe(self, index: int) -> str:
        """Returns the path of an image."""
        return os.fspath(self._root / self._files[index][0])


def _divided(root: Path) -> tuple[str, ...]:
    """Returns the split folders of `root`, none where it holds the classes themselves."""
    return tuple(name for name in (TRAIN, *HELD_OUT) if _holds_folders(root / name))


def _split_folder(root: Path, split: str, divided: Sequence[str]) -> str:
    """Returns the name of the folder of a split."""
    if split in divided or _holds_folders(root / split):
        return split
    held_out = [name for name in divided if name in HELD_OUT]
    if split in HELD_OUT and len(held_out) == 1:
        return held_out[0]
    raise UserError(f"{root}: no split {split!r}; there are {', '.join(divided)}.")


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(_class_folders(folder))


def _class_folders(root: Path) -> Iterator[Path]:
    return (item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))


def _scan(root: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Returns all images below the class folders of `root`, sorted, and the classes' names."""
    class_names = tuple(sorted(folder.name for folder in _class_folders(root)))
    if not class_names:
        raise UserError(f"{root}: holds no class folders; {root}/CLASS/IMAGE.jpg was expected.")
    files, empty = [], []
    for label, name in enumerate(class_names):
        images = sorted(_images(root / name))
        files += [(os.path.relpath(path, root), label) for path in images]
        if not images:
            empty.append(name)
    if empty:
        raise UserError(
            f"{root}: no images ({', '.join(sorted(SUFFIXES))}) in the class folder(s) "
            f"{', '.join(empty)}; add some or remove the folder(s)."
        )
    return files, class_names


def _images(folder: Path) -> Iterator[str]:
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield os.path.join(directory, name)  # noqa: PTH118, a Path costs ten times this


def _is_held_out(path: str, *, holdout: float, seed: int) -> bool:
    # One spelling of a name on every system: macOS takes accents apart, Windows has "\".
    key = unicodedata.normalize("NFC", f"{seed}:{path.replace(os.sep, '/')}")
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < holdout * 2**64


def _check_division(
    root: Path,
    chosen: Sequence[tuple[str, int]],
    class_names: Sequence[str],
    *,
    split: str,
    holdout: float,
    seed: int,
) -> None:
    """Raises where a class has nothing to train on, or nothing at all is held out."""
    missing = set(range(len(class_names))) - {label for _, label in chosen}
    if split == TRAIN and missing:
        names = ", ".join(class_names[label] for label in sorted(missing))
        raise UserError(
            f"{root}: holdout={holdout} with seed={seed} leaves no image to train on in {names}; "
            "add images, or choose another holdout or seed."
        )
    if not chosen:
        raise UserError(
            f"{root}: holdout={holdout} with seed={seed} holds out no image; add images, or "
            "choose another holdout or seed."
        )

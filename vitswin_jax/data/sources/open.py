"""Datasets by name: the one place that decides the kind of a dataset."""

from __future__ import annotations

import os
from typing import Any

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Source, UserError
from vitswin_jax.data.sources.digits import EMBEDDED, digits_directory
from vitswin_jax.data.sources.files import is_file, is_folder, is_remote
from vitswin_jax.data.sources.folders import is_written_like_a_path, open_folder
from vitswin_jax.data.sources.huggingface import PREFIX as HUGGING_FACE
from vitswin_jax.data.sources.huggingface import is_saved, open_huggingface
from vitswin_jax.data.sources.mixtures import MixtureSource, is_mixture, parse_mixture
from vitswin_jax.data.sources.objects import PREFIX as PYTHON
from vitswin_jax.data.sources.shards import COMPRESSED, SUFFIX, holds_shards, open_shards
from vitswin_jax.data.sources.splits import Dataset
from vitswin_jax.data.sources.tables import open_table
from vitswin_jax.data.sources.tfds import TfdsSource, tfds_directory

TABLE, TABLE_OF_FOLDER = ".csv", "labels.csv"
TFDS_INFO = "dataset_info.json"


def open_source(
    dataset: str,
    *,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    holdout: float = 0.25,
    outside_files: bool = False,
    seed: int = 0,
) -> Source:
    """Returns one split, or a part of one, "train[:90%]", of a dataset.

    `dataset` is one of `digits.EMBEDDED` (prepared on first use), a mixture "0.7*a + 0.3*b" of what
    follows, anything that `open_dataset` knows, or a dataset that TFDS has prepared: its
    directory, or its name with its root `data_dir`. What is not divided into splits is
    divided by `holdout` and `seed`; see `Dataset.open`. With `outside_files` a table may
    name files outside of its folder.

    Raises UserError where there is no such dataset or split, or it is not prepared.
    """
    if dataset.startswith(PYTHON):
        raise UserError(
            f"{dataset}: was passed to `vitswin_jax.fit` as objects; name a dataset in its place."
        )
    if is_mixture(dataset):
        parts, shares = zip(*parse_mixture(dataset), strict=True)
        where: dict[str, Any] = {"data_dir": data_dir, "outside_files": outside_files}
        opened = [
            open_source(part, split=split, holdout=holdout, seed=seed, **where) for part in parts
        ]
        for other in opened[1:]:
            check_same_classes(opened[0], other)
        return MixtureSource(opened, shares, name=f"{dataset}:{split}")
    if dataset in EMBEDDED:
        return TfdsSource(digits_directory(data_dir, name=dataset), split, name=dataset)
    if folder := prepared_folder(dataset):
        return TfdsSource(folder, split, name=folder.rpartition("/")[2])
    if known := open_dataset(dataset, outside_files=outside_files):
        return known.open(split, holdout=holdout, seed=seed)
    return TfdsSource(tfds_directory(dataset, data_dir), split, name=dataset)


def is_dataset(name: str) -> bool:
    """Returns whether a name is a dataset's by what is here, or by the way it is written.

    Names of TFDS need its catalogue, and are not known here (`tfds.tfds_builder`).
    """
    path = _expanded(name)
    return (
        is_mixture(name)
        or name in EMBEDDED
        or name.startswith(HUGGING_FACE)
        or path.endswith((TABLE, SUFFIX, *COMPRESSED))
        or is_written_like_a_path(name)
        or is_folder(path)
    )


def open_dataset(dataset: str, *, outside_files: bool = False) -> Dataset | None:
    """Returns a dataset that this package reads itself, None where it must be TFDS's.

    It is one of Hugging Face, "hf:NAME"; a table, "labels.csv"; tar shards,
    "train-{000..127}.tar"; or a folder that holds either, class folders, or what Hugging Face's
    `save_to_disk` wrote. Paths may be an object store's, "gs://bucket/flowers".
    """
    if dataset.startswith(HUGGING_FACE):
        return open_huggingface(dataset, outside_files=outside_files)
    path = _expanded(dataset)
    if path.endswith(TABLE):
        return open_table(path, outside_files=outside_files)
    if path.endswith((SUFFIX, *COMPRESSED)):
        return open_shards(path)
    if is_folder(path) or is_written_like_a_path(dataset):
        return _open_any_folder(path, outside_files)
    return None


def _open_any_folder(path: str, outside_files: bool) -> Dataset:
    if is_saved(path):
        return open_huggingface(path, outside_files=outside_files)
    if is_file(f"{path}/{TABLE_OF_FOLDER}"):
        return open_table(f"{path}/{TABLE_OF_FOLDER}", outside_files=outside_files)
    return open_shards(path) if holds_shards(path) else open_folder(path)


def _expanded(path: str) -> str:
    """Returns a path, or a pattern, without ~ and a slash at its end."""
    path = path if is_remote(path) else os.path.expanduser(path)  # noqa: PTH111, not a Path
    return path.rstrip("/") or path


def prepared_folder(dataset: str) -> str | None:
    """Returns the directory that a dataset names if TFDS has prepared one there."""
    path = _expanded(dataset)
    if is_file(f"{path}/{TFDS_INFO}") and not is_saved(path):
        return path
    return None


def check_same_classes(train: Source, test: Source) -> None:
    """Raises UserError unless both splits number the same classes in the same way."""
    ours, theirs = set(train.class_names), set(test.class_names)
    faults = Faults()
    faults.need(theirs <= ours, f"{test.name} alone has {', '.join(sorted(theirs - ours))}")
    faults.need(ours <= theirs, f"{train.name} alone has {', '.join(sorted(ours - theirs))}")
    ordered = faults or train.class_names == test.class_names
    faults.need(ordered, "they have the same classes in another order")
    if train.multi_label != test.multi_label:
        one, other = (test, train) if train.multi_label else (train, test)
        faults.append(f"{one.name} has one label an image, {other.name} several")
    faults.check(f"{train.name} and {test.name} must have the same classes: ")

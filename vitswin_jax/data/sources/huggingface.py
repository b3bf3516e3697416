"""Datasets of the Hugging Face hub, or saved from it, through its own package `datasets`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from vitswin_jax.core.types import Label, Record, UserError
from vitswin_jax.data.sources.described import Numbered
from vitswin_jax.data.sources.files import (
    is_file,
    is_folder,
    is_inside,
    is_remote,
    read_file,
)
from vitswin_jax.data.sources.labels import listed
from vitswin_jax.data.sources.splits import ALL, Dataset

PREFIX = "hf:"

_DIVIDED, _UNDIVIDED = "dataset_dict.json", "state.json"  # what save_to_disk leaves in a folder


def is_saved(folder: str) -> bool:
    """Returns whether a folder is one that `save_to_disk` wrote."""
    return any(is_file(f"{folder}/{name}") for name in (_DIVIDED, _UNDIVIDED))


def open_huggingface(dataset: str, *, outside_files: bool = False) -> Dataset:
    """Returns a dataset: "hf:NAME" or "hf:NAME:CONFIG" of the hub, or a saved folder.

    Needs one image and one ClassLabel, or one list of them, in each record. Raises UserError
    where there is no such dataset, or the package `datasets` is not installed. With `outside_files`
    the records of a saved folder may name images outside of it.
    """
    loaded = _load(dataset)
    splits = loaded if isinstance(loaded, Mapping) else {ALL: loaded}
    open_split = functools.partial(HuggingFaceSource, outside_files=outside_files)
    return Dataset(
        dataset,
        {s: functools.partial(open_split, dataset, s, table) for s, table in splits.items()},
    )


def _load(dataset: str) -> Any:
    """Returns the package's own object: its datasets by their splits, or one that is undivided."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{dataset}: needs the package datasets; `pip install vitswin_jax[datasets]`."
        ) from error
    place = dataset.removeprefix(PREFIX)
    try:
        if is_folder(place) and is_saved(place):
            return datasets.load_from_disk(place)
        name, _, config = place.partition(":")
        return datasets.load_dataset(name, config or None)
    # The network, a name that is none, a config that must be chosen, files that are damaged.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{dataset}: cannot be opened by the package datasets: {reason}") from error


def _reopen(dataset: str, split: str, outside_files: bool) -> HuggingFaceSource:
    loaded = _load(dataset)
    table = loaded[split] if isinstance(loaded, Mapping) else loaded
    return HuggingFaceSource(dataset, split, table, outside_files=outside_files)


class HuggingFaceSource(Numbered):
    """One split of a dataset; images stay encoded."""

    def __init__(
        self, dataset: str, split: str, table: Any, *, outside_files: bool = False
    ) -> None:
        """`table` is the package's own object for the split."""
        import datasets

        self._dataset, self._split, self._outside_files = dataset, split, outside_files
        place = dataset.removeprefix(PREFIX)
        self._folder = place if is_folder(place) and is_saved(place) else None
        self.name = f"{dataset}:{split}"
        self._image, self._label = _image_and_label(table.features, dataset)
        table = table.select_columns([self._image, self._label])
        self._table = table.cast_column(self._image, datasets.Image(decode=False))
        self._labels = table.select_columns([self._label])
        feature = table.features[self._label]
        self.multi_label = not isinstance(feature, datasets.ClassLabel)
        self.class_names = tuple((feature.feature if self.multi_label else feature).names)

    def __reduce__(self) -> tuple:
        return _reopen, (
            self._dataset,
            self._split,
            self._outside_files,
        )  # a worker maps the files again

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = operator.index(index)
        row = self._table[index]
        image = row[self._image]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise UserError(f"{self.describe(index)}: has no image.")
        data = image["bytes"] if image["bytes"] is not None else self._read(image["path"], index)
        return Record(image=data, label=self._checked(row[self._label], index))

    def _read(self, path: str, index: int) -> bytes:
        """Returns the bytes of a file that a record names; the hub's lie in its package's cache."""
        place = path if is_remote(path) else str(Path(path).absolute())
        if self._folder and not self._outside_files and not is_inside(self._folder, place):
            raise UserError(
                f"{self.describe(index)}: names {path}, which is outside of the dataset's folder; "
                "set config.data.outside_files=True (evaluate: --outside-files) to read such files."
            )
        return read_file(path)

    def label(self, index: int) -> Label:
        """Returns the class, or the classes, of a record."""
        return self._checked(self._labels[index][self._label], index)

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the labels, the sizes of stored images, and the names of those in files."""
        columns = _about_images(self._table, self._image)
        columns["labels"] = list(self._labels[self._label])
        chosen: dict[str, Sequence[Any]]
        chosen = {name: [column[i] for i in indices] for name, column in columns.items()}
        labels = zip(chosen["labels"], indices, strict=True)
        return chosen | {"labels": [self._checked(label, index) for label, index in labels]}

    def _checked(self, label: Any, index: int) -> Label:
        classes = tuple(sorted(label or ())) if self.multi_label else (label,)
        if not classes or any(c is None or not 0 <= c < len(self.class_names) for c in classes):
            raise UserError(
                f"{self.describe(index)}: has the label {label}, which is outside [0, "
                f"{len(self.class_names)}); use a split whose labels are public."
            )
        return classes if self.multi_label else classes[0]


def _about_images(table: Any, column: str) -> dict[str, Sequence[Any]]:
    """Returns columns about images; Arrow has the lengths of bytes apart from the bytes."""
    import pyarrow.compute

    images = table.data.column(column)
    sizes = pyarrow.compute.binary_length(pyarrow.compute.struct_field(images, "bytes"))
    paths = pyarrow.compute.struct_field(images, "path").to_pylist()
    names = [None if path is None else path.rpartition("/")[2] for path in paths]
    return {"names": names, "sizes": sizes.to_pylist()}


def _image_and_label(features: Any, dataset: str) -> tuple[str, str]:
    """Returns the columns of the one image and the one class, or list of classes."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [
        name
        for name, kind in features.items()
        if isinstance(getattr(kind, "feature", kind), datasets.ClassLabel)
    ]
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise UserError(
        f"{dataset}: needs one image and one ClassLabel, or one list of them, in each record, and "
        f"has the images {listed(images) or '(none)'} and the class labels "
        f"{listed(labels) or '(none)'}; remove or cast columns and use save_to_disk."
    )

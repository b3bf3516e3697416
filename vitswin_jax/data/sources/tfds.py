"""Datasets that TFDS has prepared, read without TensorFlow."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from vitswin_jax.core.types import Label, Record, UserError, nearest
from vitswin_jax.data.sources.described import Numbered
from vitswin_jax.data.sources.digits import EMBEDDED
from vitswin_jax.data.sources.prepared import prepared_builder


class TfdsSource(Numbered):
    """One split of a prepared TFDS dataset; images stay encoded and TensorFlow stays out.

    Splits are cut by TFDS itself, "train[:99%]", so that a part is what it is elsewhere.
    """

    multi_label = False

    def __init__(self, directory: str | os.PathLike[str], split: str, *, name: str) -> None:
        import tensorflow_datasets as tfds  # 0.4 s, and folders need none of it

        self._directory, self._split, self._dataset = os.fspath(directory), split, name
        self.name = f"{name}:{split}"
        builder = prepared_builder(self._directory)
        info = builder.info
        self._image, self._label = _image_and_label(info, name)
        self.class_names = tuple(info.features[self._label].names)
        self._version, self._sizes = info.full_name, _sizes(info, split)
        skip = {self._image: tfds.decode.SkipDecoding()}
        try:
            self._records = builder.as_data_source(split, decoders=skip)
            self._length = len(self._records)
        except ValueError as error:
            raise UserError(
                f"{name}: no split {split!r}; there are {', '.join(info.splits)}, and parts of "
                f"them such as '{next(iter(info.splits), 'train')}[:99%]'."
            ) from error
        except NotImplementedError as error:
            raise UserError(
                f"{name}: {self._directory} holds {info.file_format.value} files, which give no "
                f"random access; {_prepare_command(self._directory, 'ANOTHER_DIR')} copies them "
                "into ArrayRecord."
            ) from error
        except Exception as error:  # ArrayRecord's reader, TFDS and Python, on damaged files
            raise UserError(
                f"{name}: the files of the split {split!r} in {self._directory} are missing or "
                "damaged; copy or prepare them again."
            ) from error

    def __reduce__(self) -> tuple:
        # TFDS's objects are large and partly unpicklable; a worker opens the files again.
        return _open_tfds, (self._directory, self._split, self._dataset)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Record:
        index = operator.index(index)
        try:
            record = self._records[index]
            image, label = record[self._image], int(record[self._label])
        except Exception as error:  # ArrayRecord's reader, protobuf and TFDS, on damaged files
            raise UserError(
                f"{self.describe(index)}: the record is damaged; copy or prepare the files in "
                f"{self._directory} again."
            ) from error
        if not 0 <= label < len(self.class_names):
            raise UserError(
                f"{self.describe(index)}: has the label {label}, outside [0, "
                f"{len(self.class_names)}); use a split whose labels are public."
            )
        return Record(image=image, label=label)

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the version and, as TFDS counted them when it prepared the data, their bytes.

        The labels are in the records. What this package embeds has one version everywhere, and
        as many bytes as the installed Pillow makes of it.
        """
        del indices
        return {"version": [self._version], "sizes": self._sizes}

    def label(self, index: int) -> Label:
        """Returns the class of a record, for which the whole record is read."""
        return self[index]["label"]


def _open_tfds(directory: str, split: str, name: str) -> TfdsSource:
    return TfdsSource(directory, split, name=name)


def tfds_directory(dataset: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the directory in which TFDS has prepared a dataset.

    Raises UserError where TFDS does not know the name or has not prepared the dataset.
    """
    builder = tfds_builder(dataset, data_dir)
    if not builder.is_prepared():
        raise UserError(
            f"{dataset}: not prepared in {builder.data_dir}; run "
            f"{_prepare_command(dataset, data_dir)} first."
        )
    return Path(builder.data_dir)


def tfds_builder(dataset: str, data_dir: str | os.PathLike[str] | None):
    """Returns TFDS's builder of that name, from its catalogue or from prepared files.

    Raises UserError, with the nearest names, where there is none.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        names = [*EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        hint = nearest(dataset, names) or "."
        raise UserError(
            f"{dataset}: neither a folder nor a dataset of TFDS, in its catalogue or prepared in "
            f"{data_dir or tfds.core.constants.DATA_DIR}{hint}"
        ) from error
    # A name that is no name, an unknown config, an unknown version, a missing dependency.
    except (ValueError, AssertionError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{dataset}: TFDS cannot open it: {reason}") from error


def _image_and_label(info, name: str) -> tuple[str, str]:
    """Returns the keys of the one image and the one class of a dataset's records."""
    import tensorflow_datasets as tfds

    features = dict(info.features)
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    image, label = (*(info.supervised_keys or ()), None, None)[:2]
    if image in images and label in labels:
        return image, label
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise UserError(
        f"{name}: needs one image and one class label in each record, and has the images "
        f"{_named(images)} and the class labels {_named(labels)}."
    )


def _sizes(info: Any, split: str) -> list[int]:
    """Returns the records of each file of a split, or a part of one, and the bytes of all."""
    whole = info.splits.get(split.partition("[")[0])
    if whole is None or info.name in EMBEDDED:
        return []
    return [*whole.shard_lengths, int(whole.num_bytes)]


def _prepare_command(dataset: str, data_dir: str | os.PathLike[str] | None) -> str:
    place = "" if data_dir is None else f" --data_dir {os.fspath(data_dir)}"
    return f"`python -m vitswin_jax.data.prepare {dataset}{place}`"


def _named(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"

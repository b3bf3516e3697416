"""Writes datasets as ArrayRecord, which is read at random and without TensorFlow.

    python -m vitswin_jax.data.prepare NAME --data_dir DIR     a dataset of TFDS's catalogue
    python -m vitswin_jax.data.prepare PREPARED --data_dir DIR one that TFDS prepared as TFRecord
    python -m vitswin_jax.data.prepare FOLDER --data_dir DIR   a folder of class folders, a table,
                                                               tar shards, hf:NAME
    python -m vitswin_jax.data.prepare digits                  the embedded digits

What it wrote is then opened by the same name, or by the directory that it prints.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitswin_jax.core.terminal import Parser, say, say_error
from vitswin_jax.core.types import Record, Source, UserError
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.sources.digits import EMBEDDED, digits_directory
from vitswin_jax.data.sources.files import is_remote
from vitswin_jax.data.sources.open import check_same_classes, open_dataset, prepared_folder
from vitswin_jax.data.sources.prepared import prepared_builder
from vitswin_jax.data.sources.splits import Dataset
from vitswin_jax.data.sources.tfds import TfdsSource, tfds_builder
from vitswin_jax.data.sources.tfrecord import convert_tfrecord, is_tfrecord_dataset

_SHOWN = 20  # unreadable images named in one message


def prepare(
    dataset: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    name: str | None = None,
    holdout: float = 0.25,
    outside_files: bool = False,
    seed: int = 0,
) -> Path:
    """Prepares a dataset under `data_dir` and returns its directory.

    What is not TFDS's is divided as `Dataset.open` says and stored under `name`, by default
    its own; every image of it is decoded once first. What TFDS has prepared as TFRecord is
    copied, record by record.

    Raises UserError where the dataset does not exist, cannot be fetched or written, or
    holds images that cannot be read: all of them are counted, and the first named.
    """
    if dataset in EMBEDDED:
        return digits_directory(data_dir, name=dataset)
    if directory := prepared_folder(dataset):
        if is_tfrecord_dataset(directory):
            return convert_tfrecord(directory, data_dir)
        raise UserError(f"{dataset}: is already prepared for random access; train on it as it is.")
    if found := open_dataset(dataset, outside_files=outside_files):
        return _pack(found, data_dir, name=name, holdout=holdout, seed=seed)
    return _prepare_tfds(dataset, data_dir)


def _prepare_tfds(dataset: str, data_dir: str | os.PathLike[str] | None) -> Path:
    import tensorflow_datasets as tfds

    builder = tfds_builder(dataset, data_dir)
    try:
        builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    except ImportError as error:
        raise UserError(
            f"{dataset}: TFDS needs the package {error.name} to prepare it; install that for "
            "this one command."
        ) from error
    # The network, the disk, archives to be fetched by hand, and whatever a builder's code does.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{dataset}: TFDS cannot prepare it: {reason}") from error
    return Path(builder.data_dir)


def _pack(
    dataset: Dataset,
    data_dir: str | os.PathLike[str] | None,
    *,
    name: str | None,
    holdout: float,
    seed: int,
) -> Path:
    from tensorflow_datasets.core.constants import DATA_DIR

    from vitswin_jax.data.sources.builder import EncodedImageBuilder

    name = _dataset_name(dataset.name, name)
    splits = {
        split: dataset.open(split, holdout=holdout, seed=seed) for split in dataset.split_names
    }
    first, *others = splits.values()
    if first.multi_label:
        raise UserError(
            f"{dataset.name}: has several labels per image, which a TFDS dataset cannot have; "
            "train on it as it is."
        )
    for other in others:
        check_same_classes(first, other)
    _check_names(dataset.name, first.class_names)
    _check_images(splits.values())
    with tempfile.TemporaryDirectory() as downloads:  # TFDS makes one even for nothing
        builder = EncodedImageBuilder(
            name,
            {split: functools.partial(_records, source) for split, source in splits.items()},
            class_names=first.class_names,
            description=f"Images of {len(first.class_names)} classes.",
            data_dir=os.fspath(data_dir or DATA_DIR),
        )
        if builder.is_prepared():
            raise UserError(f"{builder.data_dir}: exists; remove it, or give another --name.")
        try:
            builder.download_and_prepare(download_dir=downloads)
        except OSError as error:
            raise UserError(
                f"{dataset.name}: cannot be written to {builder.data_dir}: "
                f"{error.strerror or error}."
            ) from error
    return Path(builder.data_dir)


def _check_names(dataset: str, class_names: Sequence[str]) -> None:
    """Raises UserError for names that TFDS does not read back: it keeps one a line, in UTF-8."""
    for name in class_names:
        text = name.encode("utf-8", "ignore").decode()
        if text != name or name.strip() != name or len(name.splitlines()) != 1:
            raise UserError(
                f"{dataset}: the class name {name!r} cannot be stored by TFDS, which needs UTF-8 "
                "without line ends; rename it, or train on the dataset as it is."
            )


def _dataset_name(dataset: str, name: str | None) -> str:
    """Returns a name that TFDS takes: small letters, digits and underscores."""
    import tensorflow_datasets as tfds

    if name is None:
        stem = dataset if is_remote(dataset) else os.fspath(Path(dataset).resolve())
        stem = stem.rpartition("/")[2].removesuffix(".csv")
        name = re.sub(r"\W+", "_", stem.lower(), flags=re.ASCII).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"name={name!r} is no dataset's name; give --name, a small letter followed by small "
            "letters, digits and underscores."
        )
    if name in (*EMBEDDED, *tfds.list_builders(with_community_datasets=False)):
        raise UserError(f"name={name!r} is taken by another dataset; give another --name.")
    return name


def _records(source: Source) -> Iterator[Record]:
    return (source[index] for index in range(len(source)))


def _check_images(sources: Iterable[Source]) -> None:
    """Raises where an image cannot be decoded; better now than in the middle of a training."""
    places = [(source, index) for source in sources for index in range(len(source))]
    with ThreadPoolExecutor() as pool:  # the decoders let go of the interpreter's lock
        wrong = [message for message in pool.map(_unreadable, places) if message]
    if wrong:
        more = f" ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{len(wrong)} image(s) cannot be read; mend or remove them: "
            f"{' '.join(wrong[:_SHOWN])}{more}"
        )


def _unreadable(place: tuple[Source, int]) -> str | None:
    source, index = place
    try:
        decode_image(source[index]["image"], name=source.describe(index), channels=None)
    except UserError as error:
        return str(error)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 after an error of one line."""
    description, _, usage = __doc__.partition("\n\n")
    parser = Parser(
        prog="python -m vitswin_jax.data.prepare",
        description=description,
        epilog=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", help="a name, a folder or a file, as above")
    add("--data_dir", help="root to write under (default: that of TFDS)")
    add("--name", help="name of what is packed (default: the folder's)")
    add("--holdout", type=float, default=0.25, help="fraction to test on of what is undivided")
    add("--outside_files", action="store_true", help="a table may name files outside its folder")
    add("--seed", type=int, default=0, help="which images those are")
    try:
        directory = prepare(**vars(parser.parse_args(arguments)))
        say(_summary(directory))
    except UserError as error:
        say_error(error)
        return 1
    return 0


def _summary(directory: Path) -> str:
    info = prepared_builder(directory).info
    name = info.name
    classes = len(TfdsSource(directory, next(iter(info.splits)), name=name).class_names)
    splits = ", ".join(f"{split} {part.num_examples:,}" for split, part in info.splits.items())
    return f"{name}: {classes} classes; {splits} images; in {directory}"


if __name__ == "__main__":
    sys.exit(main())

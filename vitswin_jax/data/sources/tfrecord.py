"""TFRecord files, read without TensorFlow, and a prepared dataset copied out of them.

A record is its length (uint64), the length's checksum (uint32), the bytes, and their checksum
(uint32), all little-endian. What is in the bytes, a serialised example, is the same in both
formats, so a copy keeps every feature of a dataset, its shards and the order of its records.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.prepared import prepared_builder

_HEADER, _FOOTER = struct.Struct("<QI"), 4


def read_tfrecord(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Gives the records of a file in turn.

    Raises UserError where the file is cut off, damaged, or is no TFRecord.
    """
    path = Path(path)
    left = path.stat().st_size
    with path.open("rb") as file:
        while left:
            header = file.read(_HEADER.size)
            left -= len(header)
            if len(header) < _HEADER.size:
                raise UserError(f"{path}: is cut off in the middle of a record.")
            length, checksum = _HEADER.unpack(header)
            if checksum != masked_crc32c(header[:8]):
                raise UserError(f"{path}: is damaged, or no TFRecord file (a length is wrong).")
            if left < length + _FOOTER:
                raise UserError(f"{path}: is cut off in the middle of a record.")
            left -= length + _FOOTER
            record, footer = file.read(length), file.read(_FOOTER)
            if int.from_bytes(footer, "little") != masked_crc32c(record):
                raise UserError(f"{path}: is damaged (the checksum of a record is wrong).")
            yield record


def masked_crc32c(data: bytes) -> int:
    """Returns the checksum of TFRecord: CRC-32C (RFC 3720, B.4), rotated and with a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def is_tfrecord_dataset(directory: str | os.PathLike[str]) -> bool:
    """Returns whether TFDS has prepared a dataset in a directory as TFRecord files."""
    import tensorflow_datasets as tfds

    info = prepared_builder(directory).info
    return info.file_format == tfds.core.FileFormat.TFRECORD


def convert_tfrecord(
    directory: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None
) -> Path:
    """Copies a dataset that TFDS prepared as TFRecord into ArrayRecord; returns the copy.

    It lies under `data_dir` (None: TFDS's own) as NAME/CONFIG/VERSION, complete or not at all.
    Raises UserError where a file is missing, damaged or has not as many records as it should,
    the copy exists already, or it cannot be written.
    """
    import tensorflow_datasets as tfds

    builder = prepared_builder(directory)
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    target = root / Path(*builder.info.full_name.split("/"))
    if target.exists():
        raise UserError(f"{target}: exists; remove it, or give another --data_dir.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as scratch:
            copy = Path(scratch) / "copy"
            copy.mkdir()
            _copy(builder, Path(directory), copy)
            copy.rename(target)
    except OSError as error:
        name = error.filename or target
        raise UserError(f"{name}: cannot be copied: {error.strerror or error}.") from error
    return target


def _copy(builder: Any, directory: Path, copy: Path) -> None:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    skip = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    for split in builder.info.splits.values():
        for path, count in zip(split.filepaths, split.shard_lengths, strict=True):
            name = path.name.replace(".tfrecord", ".array_record")
            # TFDS writes groups of one, for reading at random.
            writer = ArrayRecordWriter(os.fspath(copy / name), "group_size:1")
            written = 0
            for record in read_tfrecord(path):
                try:
                    builder.info.features.deserialize_example_np(record, decoders=skip)
                except Exception as error:  # protobuf's and TFDS's own, on damaged bytes
                    raise UserError(
                        f"{path}: record {written} is damaged; copy it again."
                    ) from error
                writer.write(record)
                written += 1
            writer.close()
            if written != count:
                raise UserError(f"{path}: has {written:,} records; {count:,} were expected.")
    for path in directory.glob("*"):
        if path.is_file() and ".tfrecord" not in path.name:
            (copy / path.name).write_bytes(path.read_bytes())
    description = copy / "dataset_info.json"
    info = json.loads(description.read_text(encoding="utf-8"))
    info["fileFormat"] = tfds.core.FileFormat.ARRAY_RECORD.value
    for split in info["splits"]:
        template = split.get("filepathTemplate", "")
        split["filepathTemplate"] = template.replace("tfrecord", "{FILEFORMAT}")
    description.write_text(json.dumps(info, indent=2), encoding="utf-8")

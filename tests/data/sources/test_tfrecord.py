"""TFRecord-prepared datasets become ArrayRecord ones: the same examples, every feature of them."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.prepare import main
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.data.sources.tfrecord import masked_crc32c, read_tfrecord


def test_the_checksum_is_tfrecords():
    """CRC-32C of "123456789" is E3069283 (RFC 3720's polynomial); masked as TFRecord masks it."""
    crc = 0xE3069283
    want = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert masked_crc32c(b"123456789") == want


def frame(record):
    """A record as TFRecord files have it, made here by tensorboardX's own checksum."""
    from tensorboardX.record_writer import masked_crc32c as checksum

    length = struct.pack("<Q", len(record))
    return (
        length + struct.pack("<I", checksum(length)) + record + struct.pack("<I", checksum(record))
    )


def png(value):
    data = io.BytesIO()
    Image.new("L", (3, 3), value).save(data, "PNG")
    data.seek(0)
    return data


class Birds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["owl", "wren"]),
            "weight": np.float32,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(7), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": png(i), "label": i % 2, "weight": i / 8}


@pytest.fixture
def prepared(tmp_path, capsys):
    """The directory of a dataset as TFDS writes it by default, and the same as ArrayRecord."""
    builder = Birds(data_dir=str(tmp_path / "array"), file_format="array_record")
    builder.download_and_prepare(download_dir=tmp_path / "downloads")
    directory = tmp_path / "tfrecord" / "birds" / "1.2.3"
    directory.mkdir(parents=True)
    for path in builder.data_path.iterdir():
        if "array_record" not in path.name:
            (directory / path.name).write_bytes(path.read_bytes())
    from array_record.python.array_record_module import ArrayRecordReader

    for path in builder.data_path.glob("*array_record*"):
        reader = ArrayRecordReader(str(path))
        records = [frame(reader.read([i])[0]) for i in range(reader.num_records())]
        (directory / path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(records))
    description = directory / "dataset_info.json"
    info = json.loads(description.read_text())
    info["fileFormat"] = "tfrecord"
    description.write_text(json.dumps(info))
    capsys.readouterr()
    return directory, builder


def test_every_feature_and_the_order_are_kept(prepared, tmp_path, capsys):
    directory, builder = prepared
    with pytest.raises(UserError, match="holds tfrecord files"):
        open_source(str(directory), split="train")
    assert main([str(directory), "--data_dir", str(tmp_path / "out")]) == 0
    out = tmp_path / "out" / "birds" / "1.2.3"
    assert capsys.readouterr().out == f"birds: 2 classes; train 7, test 3 images; in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in builder.data_path.iterdir()
    )
    copy = tfds.builder_from_directory(out)
    skip = {"image": tfds.decode.SkipDecoding()}
    for split in ("train", "test", "train[2:5]"):
        ours, theirs = (b.as_data_source(split, decoders=skip) for b in (copy, builder))
        assert [ours[i] for i in range(len(ours))] == [theirs[i] for i in range(len(theirs))]
    assert len(open_source("birds", split="train", data_dir=tmp_path / "out")) == 7


def error(directory, tmp_path, capsys):
    assert main([str(directory), "--data_dir", str(tmp_path / "out")]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*record*"))
    return line


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-3], "is cut off in the middle of a record"),
        (lambda data: data[:5], "is cut off in the middle of a record"),
        (lambda data: b"x" + data[1:], "is damaged, or no TFRecord file"),
        (lambda data: data[:-5] + b"x" + data[-4:], "the checksum of a record is wrong"),
        (lambda data: b"", "has 0 records; 7 were expected"),
        (lambda data: data + frame(b""), "has 8 records; 7 were expected"),
        (lambda data: frame(b"\xff" * 9) + data, "record 0 is damaged"),
    ],
)
def test_damaged_files_leave_nothing_behind(prepared, tmp_path, capsys, damage, message):
    directory, _ = prepared
    (path,) = directory.glob("*train*")
    path.write_bytes(damage(path.read_bytes()))
    line = error(directory, tmp_path, capsys)
    assert message in line
    assert str(path) in line


def test_a_missing_file_is_named(prepared, tmp_path, capsys):
    directory, _ = prepared
    (path,) = directory.glob("*test*")
    path.unlink()
    assert f"{path}: cannot be copied: No such file" in error(directory, tmp_path, capsys)


def test_a_copy_that_exists_is_kept(prepared, tmp_path, capsys):
    directory, builder = prepared
    data_dir = str(tmp_path / "array")
    assert main([str(directory), "--data_dir", data_dir]) == 1
    assert f"{builder.data_dir}: exists; remove it" in capsys.readouterr().err
    assert main([str(builder.data_dir), "--data_dir", data_dir]) == 1
    assert "is already prepared for random access" in capsys.readouterr().err


def test_records_are_read_in_turn(tmp_path):
    records = [b"", b"a", bytes(1000)]
    (tmp_path / "x").write_bytes(b"".join(map(frame, records)))
    assert list(read_tfrecord(tmp_path / "x")) == records

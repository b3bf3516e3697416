"""Seeds and mutations of datasets: tables, class files, tar shards, and what TFDS prepares."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tempfile
import unittest.mock

import numpy as np
from PIL import Image

from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.prepare import prepare
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.data.sources.tfrecord import masked_crc32c

from .mutate import any_bytes, json_value

FIELDS = (
    "", "a", "cat;dog", ";", "a;;b", "1", "-1", "1e9", "x" * 3000, "../x.png", "/etc/passwd", ".",
    "images/0.png", "memory://b/x.png", "file:///etc/passwd", "a\0b", "\ud7ff", "\x1b[2J", "\u202e",
    '"', '""', "train", "test", "all", "\r", "\n", "\r\n", ",", "'", "\ufeff",
)  # fmt: skip
"""What may stand in a field of a table or a line of a file of classes."""


def png(number):
    """Returns a small image of its own colour."""
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (number, 255 - number, 7)).save(data, "PNG")
    return data.getvalue()


def read_dataset(path, split="all"):
    """Returns all that a dataset holds: images, labels, and then the names."""
    with (
        tempfile.TemporaryDirectory() as cache,  # of the indices of shards
        unittest.mock.patch.dict(os.environ, {"VITSWIN_CACHE": cache}),
    ):
        source = open_source(str(path), split=split)
        records = [source[i] for i in range(len(source))]
        names = [source.describe(i) for i in range(len(source))]
    images = {
        str(i): decode_image(record["image"], name=names[i]) for i, record in enumerate(records)
    }
    labels = np.array([np.atleast_1d(record["label"]).sum() for record in records])
    return images | {"labels": labels}, names, source.class_names


def read_train(path):
    """Returns all of a dataset's training split."""
    return read_dataset(path, "train")


def images(folder, count=6):
    """Writes images/0.png, ..."""
    (folder / "images").mkdir()
    for number in range(count):
        (folder / "images" / f"{number}.png").write_bytes(png(number))


def table(folder):
    """A table with all columns, one label quoted."""
    images(folder)
    labels = ("cat", "dog", "cat;dog", '"a, b"', "cat", "dog")
    rows = [f"{i},images/{i}.png,{label},all" for i, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["id,path,label,split", *rows, ""]))
    return folder / "labels.csv", folder / "labels.csv"


def classes(folder, mutated="classes.txt"):
    """Class folders and human names of them."""
    for number, name in enumerate(("n01", "n02", "n03")):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(png(number))
    (folder / "classes.txt").write_text("n01 great white shark\nn02 crane\nn03 crane\n")
    return folder, folder / mutated


def truth(folder):
    """ImageNet's layout: class folders to train on, and a flat folder with a file of classes."""
    for number, name in enumerate(("n01", "n02")):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "train" / name / "0.png").write_bytes(png(number))
    (folder / "val").mkdir()
    for number in range(4):
        (folder / "val" / f"{number}.png").write_bytes(png(number))
    (folder / "val.txt").write_text("".join(f"{i}.png n0{1 + i % 2}\n" for i in range(4)))
    return folder, folder / "val.txt"


def read_val(path):
    """Returns all of the split "val"."""
    return read_dataset(path, "val")


def shard(folder):
    """A tar of four examples, with other members between."""
    path = folder / "0.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(4):
            members = {"png": png(number), "cls": str(number % 2).encode(), "json": b"{}"}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path, path


def prepared(name):
    """Returns a function that packs class folders as ArrayRecord; `name` is mutated."""

    def write(folder):
        (folder / "flowers").mkdir()
        for label in ("cat", "dog"):
            (folder / "flowers" / label).mkdir()
            for number in range(4):
                (folder / "flowers" / label / f"{number}.png").write_bytes(png(number))
        directory = prepare(str(folder / "flowers"), data_dir=folder / "prepared")
        return directory, next(directory.glob(name))

    return write


def tfrecord(folder):
    """Records of a TFRecord file."""
    path, parts = folder / "a.tfrecord", []
    for number in range(5):
        record, length = png(number), struct.pack("<Q", len(png(number)))
        parts += [length, _checksum(length), record, _checksum(record)]
    path.write_bytes(b"".join(parts))
    return path, path


def _checksum(data):
    return struct.pack("<I", masked_crc32c(data))


def read_records(path):
    """Returns the records of a TFRecord file."""
    from vitswin_jax.data.sources.tfrecord import read_tfrecord

    records = enumerate(read_tfrecord(path))
    return ({str(i): np.frombuffer(record, np.uint8) for i, record in records},)


def field_of_text(data, rng):
    """Replaces, drops, doubles or swaps a field of a line, or a line."""
    lines = data.decode().split("\n")
    place = rng.randrange(len(lines))
    comma = "," if "," in lines[place] else " "
    fields = lines[place].split(comma)
    how = rng.choice(("field", "field", "field", "drop", "more", "line", "repeat", "empty"))
    if how == "field":
        fields[rng.randrange(len(fields))] = rng.choice(FIELDS)
    elif how == "drop":
        del fields[rng.randrange(len(fields))]
    elif how == "more":
        fields.insert(rng.randrange(len(fields) + 1), rng.choice(FIELDS))
    lines[place] = comma.join(fields)
    if how == "line":
        del lines[place]
    elif how == "repeat":
        lines[place:place] = [lines[place]] * rng.choice((1, 20_000))
    elif how == "empty":
        lines = lines[:1] if rng.random() < 0.5 else []
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def tar_header(data, rng):
    """Changes a field of a tar header, and corrects its checksum."""
    places = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at, changed = rng.choice(places), bytearray(data)
    start, size = rng.choice(((0, 100), (124, 12), (156, 1), (157, 100), (345, 155), (100, 8)))
    value = rng.choice(
        (
            b"0001.png", b"../../x.png", b"/etc/passwd", b"\xff\xfe.png", b"", b"00000000000",
            b"77777777777", b"\x80" + b"\xff" * 11, b"\x80" + bytes(10) + b"\x09", b"5", b"1", b"2",
            b"L", b"x", b"g", b"S", b"0002.cls", b"a.b.cls", b".png", b"-1", b"zzz",
        )
    )  # fmt: skip
    changed[at + start : at + start + size] = value[:size].ljust(size, b"\0")
    changed[at + 148 : at + 156] = b" " * 8
    total = sum(changed[at : at + 512])
    changed[at + 148 : at + 156] = f"{total:06o}\0 ".encode()
    return bytes(changed)


def tar_content(data, rng):
    """Changes the bytes of a label or an image in a tar, in its place."""
    places = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(places) + 512
    body = any_bytes(data[at : at + 512], rng)[:512].ljust(512, b"\0")
    return data[:at] + body + data[at + 512 :]


def record_length(data, rng):
    """Writes another length before a record of a TFRecord file, with its checksum."""
    places, at = [], 0
    while at < len(data):
        places.append(at)
        at += 16 + struct.unpack_from("<Q", data, at)[0]
    at = rng.choice(places)
    length = struct.pack("<Q", rng.choice((0, 1, 70, 1000, 1 << 20, 1 << 40, (1 << 64) - 1)))
    return data[:at] + length + _checksum(length) + data[at + 12 :]


def dataset_kinds(kind_of):
    """Returns the rows of `seeds.KINDS` for datasets; `kind_of` is its class `Kind`."""
    text = (field_of_text,) * 8
    return {
        "table": kind_of(table, text, read=read_dataset),
        "class-names": kind_of(classes, text, read=read_dataset),
        "class-truths": kind_of(truth, text, read=read_val),
        "shard-tar": kind_of(shard, (tar_header,) * 6 + (tar_content,) * 3, read=read_dataset),
        "shard-tfrecord": kind_of(tfrecord, (record_length,) * 2, read=read_records),
        "shard-arrayrecord": kind_of(prepared("*train*.array_record*"), read=read_train),
        "prepared-info": kind_of(
            prepared("dataset_info.json"), (json_value,) * 12, read=read_train
        ),
        "prepared-features": kind_of(
            prepared("features.json"), (json_value,) * 12, read=read_train
        ),
        "prepared-names": kind_of(prepared("label.labels.txt"), text, read=read_train),
    }

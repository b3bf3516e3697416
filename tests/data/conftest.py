"""Real images and datasets that the tests of `vitswin_jax.data` share."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from vitswin_jax.data.sources.digits import digits_directory
from vitswin_jax.data.sources.open import open_source


@pytest.fixture(scope="session")
def photo():
    """A photograph, 427x640."""
    return sklearn.datasets.load_sample_image("china.jpg")


@pytest.fixture(scope="session")
def encode():
    """Encodes pixels, or a Pillow image, in a format of Pillow's."""

    def encode(image, kind="PNG", **options):
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        data = io.BytesIO()
        image.save(data, kind, **options)
        return data.getvalue()

    return encode


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    """A data_dir in which the digits are prepared."""
    root = tmp_path_factory.mktemp("digits")
    digits_directory(root)
    return root


@pytest.fixture(scope="session")
def digits(digits_root):
    return {s: open_source("digits", split=s, data_dir=digits_root) for s in ("train", "test")}


@pytest.fixture(scope="session")
def write_folder():
    """Writes `count` images for each class, each of a colour of its own, and returns them."""

    def write_folder(root: Path, classes: dict[str, int]) -> dict[str, int]:
        colours = {}
        for name, count in classes.items():
            (root / name).mkdir(parents=True)
            for _ in range(count):
                number = len(colours)
                path = root / name / f"{number:03d}.png"
                Image.new("RGB", (5, 4), (number, 255 - number, 7)).save(path)
                colours[f"{name}/{path.name}"] = number
        return colours

    return write_folder


@pytest.fixture(scope="session")
def numbered(tmp_path_factory, write_folder):
    """A source of 23 images in three classes; the red of image i is i."""
    root = tmp_path_factory.mktemp("numbered")
    write_folder(root / "train", {"a": 9, "b": 13, "c": 1})
    source = open_source(str(root), split="train")
    assert [int(np.asarray(Image.open(source.describe(i)))[0, 0, 0]) for i in range(23)] == [
        *range(23)
    ]
    return source


@pytest.fixture(scope="session")
def tiff():
    """Writes a TIFF, little-endian, of one strip, unless `tags` says otherwise."""

    def tiff(pixels, *, compress=False, tags=None):
        """`pixels` (h, w) or (h, w, c); `tags` are {number: value}, an int, a float or a list."""
        height, width, channels = (*pixels.shape, 1)[:3]
        data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
        data = zlib.compress(data) if compress else data
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        fields = {
            256: width, 257: height, 258: [8 * pixels.dtype.itemsize] * channels,
            259: 8 if compress else 1, 262: 2 if channels > 2 else 1, 273: 0, 277: channels,
            278: height, 279: len(data), 339: kind,
        } | (tags or {})  # fmt: skip
        start = 8 + 2 + 12 * len(fields) + 4
        lists = [v for v in fields.values() if isinstance(v, list) and len(v) > 1]
        fields[273] = fields[273] or start + sum(4 * len(v) for v in lists)
        entries, values = b"", b""
        for number, value in sorted(fields.items()):
            several = value if isinstance(value, list) else [value]
            kind, letter = (11, "f") if isinstance(several[0], float) else (4, "I")
            content = struct.pack(f"<{len(several)}{letter}", *several)
            if len(several) > 1:
                place = start + len(values)
                values, content = values + content, struct.pack("<I", place)
            entries += struct.pack("<HHI", number, kind, len(several)) + content
        head = b"II*\0" + struct.pack("<IH", 8, len(fields))
        return head + entries + bytes(4) + values + data

    return tiff

"""Damage that decoders leave unsaid is one line; memory and time are bounded by the header."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data import damage
from vitswin_jax.data.decode import FORMATS, decode_image, jpeg_size

ENCODINGS = {
    "jpeg": ("JPEG", {}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
} | ({"avif": ("AVIF", {})} if "AVIF" in FORMATS else {})  # fmt: skip


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, *, depth=8, colour=0, interlaced=0, parts=1):
    """A PNG of filtered rows, as they are, in so many IDAT chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    stored = zlib.compress(rows)
    cuts = [len(stored) * part // parts for part in range(parts + 1)]
    pixels = [chunk(b"IDAT", stored[a:b]) for a, b in itertools.pairwise(cuts)]
    body = chunk(b"IHDR", header) + b"".join(pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_file_cut_short_anywhere_is_refused_or_equal(photo, encode, name):
    kind, options = ENCODINGS[name]
    data = encode(photo[100:140, 100:160], kind, **options)
    whole, refused = decode_image(data), 0
    for kept in range(0, len(data), max(1, len(data) // 150)):
        try:
            image = decode_image(data[:kept], name="x")
        except UserError as error:
            assert str(error).startswith("x: ")
            refused += 1
        else:
            np.testing.assert_array_equal(image, whole)
    assert refused > 100


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rows", [1, 20, 39])
def test_a_png_without_its_last_rows(interlaced, parts, rows):
    data = png(60, 40, b"\0" * (61 * rows), interlaced=interlaced, parts=parts)
    with pytest.raises(UserError, match=r"^x: .*cut short"):
        decode_image(data, name="x")


@pytest.mark.parametrize("height", [1, 2, 40, 41])
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_a_black_png_is_black(height, depth):
    image = decode_image(png(60, height, b"\0" * ((1 + -(-60 * depth // 8)) * height), depth=depth))
    assert image.shape == (height, 60, 3)
    assert not image.any()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (60, 41)])
def test_an_interlaced_png_is_whole(size):
    """The rows of Adam7's passes, counted one by one."""
    width, height = size
    place = np.array([[1, 6, 4, 6, 2, 6, 4, 6], [7] * 8, [5, 6] * 4, [7] * 8] * 2)
    place[4] = [3, 6, 4, 6, 3, 6, 4, 6]  # https://www.w3.org/TR/png-3/#8Interlace
    passes = np.tile(place, (height // 8 + 1, width // 8 + 1))[:height, :width]
    rows = sum(
        1 + (passes[y] == number).sum()
        for number in range(1, 8)
        for y in range(height)
        if (passes[y] == number).any()
    )
    assert not decode_image(png(width, height, b"\0" * rows, interlaced=1)).any()
    with pytest.raises(UserError, match="cut short"):
        decode_image(png(width, height, b"\0" * (rows - 1), interlaced=1))


def test_a_flipped_bit_of_a_png_changes_nothing_in_silence(photo, encode):
    data = encode(photo[:40, :60])
    whole, rng = decode_image(data), np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            image = decode_image(bytes(changed))
        except UserError:
            continue
        np.testing.assert_array_equal(image, whole)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_closed_early(photo, encode, mode, progressive):
    """Half the data and the marker of the end: libjpeg makes the rest grey, and says so."""
    data = encode(Image.fromarray(photo).convert(mode), "JPEG", progressive=progressive)
    with pytest.raises(UserError, match=r"^x: the image is damaged: cut short or changed \(JPEG, "):
        decode_image(data[: len(data) // 2] + b"\xff\xd9", name="x")


def test_an_uncompressed_tiff_without_its_last_strips(tiff, photo):
    data = tiff(photo, tags={278: 100})  # five strips, and the offset of one
    with pytest.raises(UserError, match=r"^x: the image is damaged: it lacks strips"):
        decode_image(data, name="x")


def damaged_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    good = exif.tobytes()
    return {
        "junk": b"Exif\0\0junkjunkjunk",
        "offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "cut": good[:18],
        "type": good.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x07"),
        "count": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", *(["AVIF"] if "AVIF" in FORMATS else [])])
@pytest.mark.parametrize("case", damaged_exif())
def test_damaged_exif_leaves_the_image_as_it_is(photo, encode, kind, case):
    exif, photo = damaged_exif()[case], photo[:64, :96]
    if kind == "AVIF":  # its encoder reads what it writes
        good = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x010F, 2, 60, 26) + bytes(60)
        data = encode(photo, kind, exif=b"Exif\0\0" + good)
        assert good in data
        data = data.replace(good, exif[6:].ljust(len(good), b"\0"))
    else:
        data = encode(photo, kind, exif=exif)
    np.testing.assert_array_equal(decode_image(data), decode_image(encode(photo, kind)))


@pytest.mark.parametrize("place", [7, 100, 2**32 - 1])
def test_damaged_exif_of_a_tiff(tiff, photo, place):
    data = tiff(photo, tags={34665: place, 34853: place, 274: 6})
    np.testing.assert_array_equal(decode_image(data), np.rot90(photo, -1))


@pytest.mark.parametrize("size", [3, 40, 100, 300])
def test_the_size_of_a_damaged_jpeg_with_exif(photo, encode, size):
    """Pillow cannot identify such files; `jpeg_size` answers that it does not know."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo, "JPEG", exif=exif)
    assert jpeg_size(data[:size]) is None
    assert jpeg_size(data[:2] + data[20:]) is None


@pytest.mark.parametrize("limit", [1, 20])
def test_scans_of_a_progressive_jpeg_are_counted(photo, encode, monkeypatch, limit):
    data = encode(photo, "JPEG", progressive=True)
    monkeypatch.setattr(damage, "MAX_SCANNED", limit * photo.shape[0] * photo.shape[1])
    if limit == 20:
        assert decode_image(data).shape == photo.shape
    else:
        with pytest.raises(UserError, match=r"^x: 10 scans of 640x427 pixels; at most 1 are read"):
            decode_image(data, name="x")
        decode_image(encode(photo, "JPEG"))  # one scan is never counted


def transparent(side):
    """A PNG of a palette that is transparent: each step of its way to RGB takes four bytes."""
    size = struct.pack(">IIBBBBB", side, side, 1, 3, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side * (side // 8 + 2)))
    parts = (b"IHDR", size), (b"PLTE", bytes(6)), (b"tRNS", b"\0"), (b"IDAT", rows), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def deep(side):
    return png(side, side, b"\0" * (side * (2 * side + 1)), depth=16)


def one_row(side):
    return png(side, side, b"\0" * (4 * side + 1), colour=6)


def animation(side):
    data = io.BytesIO()
    frames = [Image.new("RGBA", (side, side), (n, 0, 0, n)) for n in range(3)]
    frames[0].save(data, "PNG", save_all=True, append_images=frames[1:])
    return data.getvalue()


MEASURE = """
import sys
from pathlib import Path
from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import decode_image
data = sys.stdin.buffer.read()
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
before = peak()
try:
    print(decode_image(data).shape, end=" ")
except UserError as error:
    print(error, end=" ")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "make, side",
    [(one_row, 9400), (deep, 4000)]
    + [pytest.param(make, 9400, marks=pytest.mark.long) for make in (transparent, deep)]
    + [pytest.param(animation, 6000, marks=pytest.mark.long)],
)
def test_what_decoding_holds_is_bounded(make, side):
    """Eight bytes for a pixel: what Pillow holds, and what is returned."""
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, input=make(side), capture_output=True, check=True)
    assert not done.stderr
    megabytes = int(done.stdout.split()[-1])
    assert megabytes < 60 + 8 * side * side / 1e6


def test_a_progressive_jpeg_whose_scans_are_out_of_order(photo, encode):
    """A scan that comes twice; libjpeg warns only after it has decoded all of them."""
    data = encode(photo, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(UserError, match=r"^x: the image is damaged: "):
        decode_image(data[:-2] + data[last:], name="x")

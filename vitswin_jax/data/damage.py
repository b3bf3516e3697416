"""Damage that decoders do not report: missing rows, wrong checksums, too many scans."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from vitswin_jax.core.types import UserError

PNG = b"\x89PNG\r\n\x1a\n"
MAX_SCANNED = 1 << 31
"""Pixels times scans of the most laborious JPEG: 24 scans of the largest image."""

_SCAN = 0xDA  # the marker of a JPEG's scan; after 0xFF, the data between markers never have it
_SCAN_BYTES = 10  # of the shortest scan
_RATIO = 1032  # bytes that a byte of zlib's can stand for (https://zlib.net/zlib_tech.html)
_PIECE = 1 << 16  # bytes that are inflated at a time
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by a PNG's type of colour
_PASSES = (  # first column, first row, columns and rows from one to the next: Adam7
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Gives the segments of a JPEG to its first scan: the marker, and where its length stands."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        yield data[at + 1], at + 2
        if data[at + 1] == _SCAN:
            return
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def check_scans(data: bytes, width: int, height: int, *, name: str) -> None:
    """Raises UserError for a JPEG of so many scans that decoding it takes minutes."""
    most = MAX_SCANNED // (width * height)
    if len(data) // _SCAN_BYTES <= most or not _may_have_scans(data):
        return
    scans = data.count(bytes((0xFF, _SCAN)))
    if scans > most:
        raise UserError(
            f"{name}: {scans:,} scans of {width}x{height} pixels; at most {most:,} are read."
        )


def _may_have_scans(data: bytes) -> bool:
    """Returns whether a JPEG is not of one scan only: sequential, and all colours in the first."""
    components = None
    for marker, at in segments(data):
        if marker in (0xC0, 0xC1):  # baseline and extended sequential
            components = data[at + 7 : at + 8]
        elif marker == _SCAN:
            return components is None or components != data[at + 2 : at + 3]
    return True


def check_chunks(data: bytes, *, name: str) -> None:
    """Raises UserError for a PNG whose pixels are cut short, or have a wrong checksum."""
    if data[12:16] != b"IHDR":
        raise UserError(f"{name}: the image is damaged: a PNG begins with the chunk IHDR.")
    for chunk in _pixel_chunks(data):
        body, checksum = chunk[:-4], chunk[-4:]
        if zlib.crc32(body) != int.from_bytes(checksum, "big"):
            raise UserError(
                f"{name}: the image is damaged: it is cut short, or the checksum of its pixels "
                "is wrong; copy it again."
            )
    stored = sum(len(chunk) - 8 for chunk in _pixel_chunks(data))
    if _raw_size(data) > (stored + 1) * _RATIO:
        raise UserError(
            f"{name}: the image is damaged: cut short; {stored:,} bytes cannot hold its pixels."
        )


def check_rows(image: Image.Image, data: bytes, *, name: str) -> None:
    """Raises UserError for a PNG whose compressed pixels end before its last row.

    Pillow leaves missing rows at 0. A last row of 0 may be right, and is then counted.
    """
    width, height = image.size
    last = np.asarray(image.crop((0, height - 1, width, height)))
    if last.any() and not image.info.get("interlace"):
        return
    missing, inflate = _raw_size(data), zlib.decompressobj()
    for chunk in _pixel_chunks(data):
        for at in range(4, len(chunk) - 4, _PIECE):  # a tail is copied: large ones take long
            rest = bytes(chunk[at : min(at + _PIECE, len(chunk) - 4)])
            while rest and missing > 0:
                missing -= len(inflate.decompress(rest, 16 * _PIECE))
                rest = inflate.unconsumed_tail
    if missing > 0:
        raise UserError(f"{name}: the image is damaged: it is cut short, without its last rows.")


def check_strips(image: Any, *, name: str) -> None:
    """Raises UserError for an uncompressed TIFF without all strips; Pillow leaves them black."""
    if image.use_load_libtiff:
        return  # and libtiff reports them
    tags: Any = image.tag_v2
    covered = sum(
        (right - left) * (bottom - top)
        for left, top, right, bottom in (tile[1] for tile in image.tile)
    )
    layers = len(image.getbands()) if tags.get(284, 1) == 2 else 1  # PlanarConfiguration
    width, height = tags[256], tags[257]
    if covered < width * height * layers:
        raise UserError(
            f"{name}: the image is damaged: it lacks strips of its {width}x{height} pixels."
        )


def _pixel_chunks(data: bytes) -> Iterator[memoryview]:
    """Gives the IDAT chunks of a PNG, each with its name and its checksum."""
    view, at = memoryview(data), len(PNG)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield view[at + 4 : at + 12 + size]
        if kind == b"IEND":
            return
        at += 12 + size


def _raw_size(data: bytes) -> int:
    """Returns the bytes of a PNG's rows before compression, with a byte of filter each."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS.get(colour, 1)
    sizes = [
        (-(-(width - x) // dx), -(-(height - y) // dy))
        for x, y, dx, dy in (_PASSES if interlaced else ((0, 0, 1, 1),))
    ]
    return sum(
        max(0, rows) * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0
    )

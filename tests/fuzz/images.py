"""Seeds and mutations of images: each format, with its lengths, sizes and EXIF, and bombs."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, features

from vitswin_jax.data.decode import decode_image

from .mutate import any_bytes

EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F] = 6, "a maker"
EXIF.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"

SIZES = (0, 1, 2, 255, 256, 4000, 9459, 9460, 16_383, 65_535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
"""Widths and heights: 9459 squared is just allowed."""


def pixels():
    """Returns a small photograph of sorts, uint8 (24, 40, 3)."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(24), np.arange(40))[..., None] * 3
    return (ramp + rng.integers(0, 40, (24, 40, 3))).astype(np.uint8)


def image(kind, mode="RGB", **options):
    """Returns a function that writes an image of a format of Pillow's."""

    def write(folder):
        path, data = folder / "image", Image.fromarray(pixels())
        if mode == "I;16":
            data = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)
        elif mode == "P":
            data = data.quantize(16)
        else:
            data = data.convert(mode)
        data.save(path, kind, **options)
        return path, path

    return write


def read_pixels(path):
    """Returns the pixels of an image file."""
    return ({"pixels": decode_image(path.read_bytes(), name=path.name)},)


def png_chunk(kind, body):
    """Returns a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(data):
    """Returns the chunks of a PNG: (kind, body)."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_content(data, rng):
    """Changes, drops, repeats or swaps a PNG's chunks, whose checksums are right afterwards."""
    chunks = png_chunks(data)
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    how = rng.choice(("body", "body", "size", "drop", "repeat", "swap", "inflate", "kind"))
    if how == "body":
        chunks[place] = kind, any_bytes(body, rng)
    elif how == "size":
        size = struct.pack(">II", rng.choice(SIZES), rng.choice(SIZES))
        chunks[0] = b"IHDR", size + chunks[0][1][8:]
    elif how == "drop":
        del chunks[place]
    elif how == "repeat":
        chunks[place:place] = [chunks[place]] * rng.choice((1, 2, 300))
    elif how == "swap":
        other = rng.randrange(len(chunks))
        chunks[place], chunks[other] = chunks[other], chunks[place]
    elif how == "kind":
        names = (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt")
        chunks[place] = rng.choice(names), body
    else:
        rows = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
        place = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
        chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        chunks.insert(place, (b"IDAT", zlib.compress(any_bytes(rows, rng))))
    return data[:8] + b"".join(png_chunk(kind, body) for kind, body in chunks)


def jpeg_segment(data, rng):
    """Changes a segment of a JPEG before its first scan, or the sizes in its frame."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], at + 4, at + 2 + size))
        at += 2 + size
    if rng.random() < 0.4:
        frame = next(start for marker, start, _ in segments if marker in (0xC0, 0xC1, 0xC2))
        size = struct.pack(">HH", rng.choice(SIZES) & 0xFFFF, rng.choice(SIZES) & 0xFFFF)
        return data[: frame + 1] + size + data[frame + 5 :]
    _, start, stop = rng.choice(segments)
    body = any_bytes(data[start:stop], rng)[:65_000]
    length = struct.pack(">H", len(body) + 2)
    return data[: start - 2] + length + body + data[stop:]


def jpeg_scans(data, rng):
    """Repeats the scans of a JPEG, or closes it early."""
    first = data.index(b"\xff\xda")
    if rng.random() < 0.5:
        return data[: rng.randrange(first, len(data))] + b"\xff\xd9"
    return data[:-2] + data[first:-2] * rng.choice((1, 10, 3000)) + data[-2:]


def tiff_entry(data, rng):
    """Changes an entry of a TIFF's directory: its tag, type, count or value."""
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    entry = at + 2 + 12 * rng.randrange(count)
    how, changed = rng.choice(("tag", "type", "count", "value", "value", "value")), bytearray(data)
    if how == "tag":
        tags = (256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 280, 281, 284, 317, 320, 322, 323)
        tags += (324, 325, 338, 339, 340, 341, 347, 530, 34665, 34853)
        struct.pack_into("<H", changed, entry, rng.choice(tags))
    elif how == "type":
        struct.pack_into("<H", changed, entry + 2, rng.randrange(20))
    elif how == "count":
        struct.pack_into("<I", changed, entry + 4, rng.choice(SIZES))
    else:
        value = rng.choice((*SIZES, 3, 4, 5, 6, 7, 8, 16, 32, len(data), rng.randrange(len(data))))
        struct.pack_into("<I", changed, entry + 8, value)
    return bytes(changed)


def sizes_at(*places, form="<H"):
    """Returns a mutation that writes sizes at some places of a format's header."""

    def mutation(data, rng):
        changed, most = bytearray(data), 256 ** struct.calcsize(form) - 1
        for place in rng.sample(places, rng.randint(1, len(places))):
            struct.pack_into(form, changed, place, rng.choice(SIZES) & most)
        return bytes(changed)

    return mutation


def avif_size(data, rng):
    """Writes sizes into the `ispe` box of an AVIF."""
    place = data.index(b"ispe") + 8
    return sizes_at(place, place + 4, form=">I")(data, rng)


def exif_bytes(data, rng):
    """Changes the EXIF of an image, of the same length afterwards."""
    body = EXIF.tobytes()[6:]
    place = data.index(body)
    changed = any_bytes(body, rng)[: len(body)].ljust(len(body), b"\0")
    data = data[:place] + changed + data[place + len(body) :]
    if data.startswith(b"\x89PNG"):
        data = data[:8] + b"".join(png_chunk(*chunk) for chunk in png_chunks(data))
    return data


def bomb(data, rng):
    """Gives a small file that claims to be, or is, much when it is decoded."""
    del data
    return rng.choice((_png_bomb, _text_bomb, _frames_bomb, _tiff_bomb, _jpeg_bomb, _webp_bomb))(
        rng
    )


def _png_bomb(rng):
    depth, colour, channels = rng.choice(
        ((1, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (1, 3, 1), (8, 3, 1), (8, 4, 2),
         (16, 4, 2), (8, 6, 4), (16, 6, 4))
    )  # fmt: skip
    side, interlaced = rng.choice((3000, 9000, 9459)), rng.choice((0, 0, 1))
    rows = rng.choice((1, 10, side // 10, side if depth * channels < 9 else 1))
    body = zlib.compress(bytes((1 + side * depth * channels // 8 + 1) * rows), 1)
    size = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, interlaced)
    parts = [(b"IHDR", size), (b"PLTE", bytes(768)), (b"tRNS", bytes(2))]
    parts = [part for part in parts if part[0] == b"IHDR" or colour == 3]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(*part) for part in [*parts, (b"IDAT", body), (b"IEND", b"")]
    )


def _text_bomb(rng):
    chunks = png_chunks(_encoded("PNG"))
    body = zlib.compress(bytes(rng.choice((1 << 20, 1 << 24, 1 << 27))), 1)
    kind, start = rng.choice(((b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")))
    count = rng.choice((1, 10, 100))
    place = rng.choice((1, len(chunks) - 1))
    chunks[place:place] = [(kind, start + body)] * count
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def _frames_bomb(rng):
    kind, size = rng.choice(("GIF", "PNG", "TIFF", "WEBP")), rng.choice((16, 400))
    frames = [Image.new("P" if kind == "GIF" else "RGB", (size, size), n % 250) for n in range(200)]
    data = io.BytesIO()
    frames[0].save(data, kind, save_all=True, append_images=frames[1:])
    return data.getvalue()


def _tiff_bomb(rng):
    bits, channels = rng.choice(((8, 1), (8, 3), (16, 1), (16, 4), (32, 1), (1, 1)))
    width, height = rng.choice(((9459, 9459), (1, 89_000_000), (89_000_000, 1), (7000, 7000)))
    tile = rng.choice((0, 0, 256, 20_000))
    body = zlib.compress(bytes(rng.choice((100, 1 << 20, 1 << 26))), 1)
    tags = {256: width, 257: height, 258: bits, 259: rng.choice((1, 8)), 277: channels,
            262: 2 if channels > 2 else 1, 278: rng.choice((1, 100, height)), 273: 0, 279: 0,
            339: rng.choice((1, 2, 3))}  # fmt: skip
    if tile:
        tags = {tag: tags[tag] for tag in (256, 257, 258, 259, 277, 262, 339)}
        tags |= {322: tile, 323: tile, 324: 0, 325: 0}
    start = 8 + 2 + 12 * len(tags) + 4
    tags |= {tag: start for tag in (273, 324) if tag in tags}
    tags |= {tag: len(body) for tag in (279, 325) if tag in tags}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


def _jpeg_bomb(rng):
    data = _encoded("JPEG", progressive=True)
    frame = data.index(b"\xff\xc2")
    side = rng.choice((1000, 4000, 9459))
    data = data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]
    first = data.index(b"\xff\xda")
    return data[:-2] + data[first:-2] * rng.choice((1, 10, 5000)) + data[-2:]


def _webp_bomb(rng):
    side = rng.choice((3000, 7000, 9459, 16_383))
    data = io.BytesIO()
    small = Image.new("RGB", (side, 16 if side > 7000 else side))
    small.save(data, "WEBP", lossless=rng.random() < 0.5, method=0)
    return data.getvalue()


def _encoded(kind, **options):
    data = io.BytesIO()
    Image.fromarray(pixels()).save(data, kind, **options)
    return data.getvalue()


def image_kinds(kind_of):
    """Returns the rows of `seeds.KINDS` for images; `kind_of` is its class `Kind`."""

    def kind(write, *mutations, others=True):
        return kind_of(write, mutations, others=others, read=read_pixels)

    avif = {"image-avif": kind(image("AVIF"), *[avif_size] * 2)} if features.check("avif") else {}
    return {
        "image-jpeg": kind(image("JPEG"), *[jpeg_segment] * 3, jpeg_scans),
        "image-jpeg-progressive": kind(
            image("JPEG", progressive=True), *[jpeg_segment] * 2, *[jpeg_scans] * 2
        ),
        "image-jpeg-cmyk": kind(image("JPEG", "CMYK"), *[jpeg_segment] * 3, jpeg_scans),
        "image-png": kind(image("PNG"), *[png_content] * 6),
        "image-png-palette": kind(image("PNG", "P", transparency=3), *[png_content] * 6),
        "image-png-deep": kind(image("PNG", "I;16"), *[png_content] * 6),
        "image-webp": kind(image("WEBP"), *[sizes_at(26, 28)] * 2),
        "image-webp-lossless": kind(image("WEBP", "RGBA", lossless=True), sizes_at(21, form="<I")),
        "image-bmp": kind(image("BMP"), *[sizes_at(18, 22, form="<I")] * 3, sizes_at(26, 28)),
        "image-gif": kind(image("GIF", "P"), *[sizes_at(6, 8)] * 3),
        "image-tiff": kind(image("TIFF"), *[tiff_entry] * 8),
        "image-tiff-deep": kind(image("TIFF", "I;16"), *[tiff_entry] * 8),
        "image-tiff-lzw": kind(image("TIFF", compression="tiff_lzw"), *[tiff_entry] * 8),
        "image-tiff-jpeg": kind(image("TIFF", compression="jpeg"), *[tiff_entry] * 6),
        "image-exif-jpeg": kind(image("JPEG", exif=EXIF), exif_bytes, others=False),
        "image-exif-png": kind(image("PNG", exif=EXIF), exif_bytes, others=False),
        "image-exif-webp": kind(image("WEBP", exif=EXIF), exif_bytes, others=False),
        "image-bombs": kind(image("PNG"), bomb, others=False),
    } | avif

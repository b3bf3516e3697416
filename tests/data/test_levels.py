"""Levels of more than 8 bits become 8 by the range of their type or file, never by their own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data import levels
from vitswin_jax.data.decode import decode_image

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def spread(dtype, most):
    """Levels of a type that are GREY where `most` is white."""
    return np.round(GREY.astype(np.float64) * most / 255).astype(dtype)


RANGES = {
    "uint16": (spread(np.uint16, 65_535), {}),
    "half of uint16": (spread(np.uint16, 65_535) // 2, {}),
    "12 in 16": (spread(np.uint16, 4095), {281: 4095}),
    "12 in 16 by the other tag": (spread(np.uint16, 4095), {341: 4095}),
    "10 in 16, raised": (spread(np.uint16, 1023) + 64, {280: 64, 281: 1087}),
    "int16": (spread(np.int16, 32_767), {}),
    "uint32": (spread(np.uint32, 4_294_967_295), {}),
    "16 in 32": (spread(np.uint32, 65_535), {341: 65_535}),
    "int32": (spread(np.int32, 2_147_483_647), {}),
    "8 in int32": (spread(np.int32, 255), {281: 255}),
    "float": (spread(np.float32, 255) / np.float32(255), {341: 1.0}),
    "float of -1 to 1": (spread(np.float32, 2) * 0 + (GREY / 127.5 - 1).astype(np.float32),
                         {340: -1.0, 341: 1.0}),
    "white is zero": (65_535 - spread(np.uint16, 65_535), {262: 0}),
}  # fmt: skip


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("case", RANGES)
def test_levels_are_scaled_by_their_range(tiff, case, compress):
    pixels, tags = RANGES[case]
    image = decode_image(tiff(pixels, compress=compress, tags=tags))
    expected = np.round(pixels / 257)[..., None] if case == "half of uint16" else GREY[..., None]
    np.testing.assert_array_equal(image, np.broadcast_to(expected, image.shape))


def test_big_endian_and_pillows_own_files():
    for kind, most in ((">u2", 65_535), ("<u2", 65_535), (np.int32, 2**31 - 1)):
        data = io.BytesIO()
        Image.fromarray(spread(kind, most)).save(data, "TIFF")
        np.testing.assert_array_equal(decode_image(data.getvalue())[..., 1], GREY)


def test_twelve_bits_that_are_packed(tiff):
    """Pillow reads 12 bits of BitsPerSample as levels up to 4095."""
    values = spread(np.uint16, 4095).reshape(-1, 2).astype(int)
    packed = [(a >> 4, (a & 15) << 4 | b >> 8, b & 255) for a, b in values]
    rows = np.array(packed, np.uint8).reshape(16, 24)
    data = tiff(rows, tags={256: 16, 258: 12, 279: rows.size})
    np.testing.assert_array_equal(decode_image(data)[..., 0], GREY)


REFUSED = {
    "12 in 16": (spread(np.uint16, 4095), {}, "no value is above 4,095, and its type reaches"),
    "16 in 32": (spread(np.uint32, 65_535), {}, "no value is above 65,535"),
    "8 in int32": (spread(np.int32, 255), {}, "no value is above 255"),
    "negative": (-spread(np.int16, 255), {}, "its values are from -255 to 0"),
    "above": (spread(np.uint16, 5000), {281: 4095}, "to 5000, and its range is from 0 to 4095"),
    "no range": (np.ones((4, 4), np.float32), {}, "holds floating-point pixels, and states no"),
    "no number": (np.full((4, 4), np.nan, np.float32), {341: 1.0}, "NaN"),
    "turned": (spread(np.uint16, 65_535), {280: 9, 281: 9}, "from 9 to 9"),
    "tag of NaN": (spread(np.uint16, 65_535), {341: float("nan")}, "is no number"),
    "colours of 12 in 16": (
        np.repeat(spread(np.uint16, 4095)[..., None], 3, 2), {}, "no value is above 4,095"),
    "colours that state 12": (
        np.repeat(spread(np.uint16, 4095)[..., None], 3, 2), {281: 4095}, "up to 4095 of 16 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_range_that_is_not_known_is_refused(tiff, case):
    pixels, tags, message = REFUSED[case]
    with pytest.raises(UserError, match=rf"^x\.tif: .*{message}"):
        decode_image(tiff(pixels, tags=tags), name="x.tif")


def test_black_is_black_by_any_range(tiff):
    assert not decode_image(tiff(np.zeros((4, 4), np.uint16))).any()


def test_a_dark_deep_png_is_dark(encode):
    """PNG's standard gives the range, so nothing is doubted."""
    data = encode(spread(np.uint16, 4095))
    assert decode_image(data).max() == 16


def test_deep_colours_keep_their_upper_bits(tiff):
    pixels = np.stack([spread(np.uint16, 65_535)] * 3, axis=2)
    np.testing.assert_array_equal(decode_image(tiff(pixels)), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
def test_parts_of_an_image_give_the_whole(encode, photo, monkeypatch, mode, orientation):
    image = Image.fromarray(photo[:50, :70])
    if mode == "I;16":
        image = Image.fromarray(photo[:50, :70, 0].astype(np.uint16) * 257)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, exif=exif)
    whole = decode_image(data)
    monkeypatch.setattr(levels, "_BAND", 7 * 70)
    np.testing.assert_array_equal(decode_image(data), whole)

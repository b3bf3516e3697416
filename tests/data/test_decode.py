"""Every kind of image that a folder may hold becomes upright 8 bit RGB, or one clear line."""

from __future__ import annotations

import io
import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import FORMATS, MAX_PIXELS, decode_image, jpeg_size


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
def test_jpeg_equals_pillow_bit_for_bit(photo, encode, options):
    data = encode(photo, "JPEG", quality=87, **options)
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels_back(photo, encode, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encode(photo, kind, **options)), photo)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(photo, encode, kind):
    image = decode_image(encode(photo[..., 1], kind))
    assert image.shape == photo.shape
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert np.abs(image[..., 0].astype(int) - photo[..., 1]).mean() < 5


def test_one_bit_is_black_and_white(encode):
    bits = np.eye(9, dtype=bool)
    expected = np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits))), expected)


def test_cmyk_jpeg_keeps_its_colours(encode):
    orange = Image.new("RGB", (16, 16), (250, 120, 20)).convert("CMYK")
    image = decode_image(encode(orange, "JPEG", quality=95))
    assert np.abs(image.astype(int) - (250, 120, 20)).max() <= 6


def test_sixteen_bit_grey_is_scaled_not_clipped(encode):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16)
    image = decode_image(encode(levels[None].repeat(3, 0)))
    np.testing.assert_array_equal(image[0, :, 0], np.arange(256))


def test_palette_gives_its_colours(photo, encode):
    palette = Image.fromarray(photo).quantize(64)
    np.testing.assert_array_equal(decode_image(encode(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(encode, mode):
    """Left half opaque black, right half transparent over hidden black."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 4))
    if mode == "P":
        image = Image.fromarray(np.repeat([[0] * 4 + [1] * 4], 4, axis=0).astype(np.uint8), "L")
        image.putpalette([0, 0, 0, 1, 1, 1])
        image.info["transparency"] = 1
    else:
        image = image.convert(mode)
    pixels = decode_image(encode(image))
    assert pixels[:, :4].max() == 0
    assert pixels[:, 4:].min() == 255


def test_the_suffix_does_not_matter(photo, encode):
    """ImageNet has a PNG named .JPEG; names reach the decoder only for messages."""
    np.testing.assert_array_equal(decode_image(encode(photo, "PNG"), name="n.jpg"), photo)


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_a_phones_mpo_gives_its_first_photograph(photo, encode, monkeypatch, decoder):
    """Pillow's JPEG reader hands it to its MPO reader, which FORMATS does not list."""
    exif = Image.Exif()
    exif[0x0112] = 6
    more = [Image.fromarray(255 - photo)]
    data = encode(photo, "MPO", save_all=True, append_images=more, quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    if decoder == "pillow":
        monkeypatch.setattr("simplejpeg.decode_jpeg_header", Mock(side_effect=ValueError))
    difference = decode_image(data).astype(int) - np.rot90(photo, -1)
    assert np.abs(difference).mean() < 4


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
def test_avif(photo, encode):
    image = decode_image(encode(photo, "AVIF", quality=95))
    assert np.abs(image.astype(int) - photo).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_turns_the_image_upright(photo, encode, kind, orientation):
    image = Image.fromarray(photo[:64, :96])
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encode(image, kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((96, 64) if orientation < 5 else (64, 96))
    np.testing.assert_array_equal(decode_image(data), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_broken_exif_leaves_the_image_as_it_is(photo, encode):
    for exif in (b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\x05"):
        image = decode_image(encode(photo, "JPEG", exif=exif))
        np.testing.assert_array_equal(image, decode_image(encode(photo, "JPEG")))


def test_first_frame_of_an_animation(encode):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data)[0, 0], (255, 0, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_truncated_file_is_refused_by_name(photo, encode, kind, kept):
    data = encode(photo, kind)
    with pytest.raises(UserError, match=r"^shelf/cat\.jpg: .*\.$") as error:
        decode_image(data[: int(len(data) * kept)], name="shelf/cat.jpg")
    assert "\n" not in str(error.value)


def test_empty_file():
    with pytest.raises(UserError, match=r"^x\.png: the file is empty \(0 bytes\)"):
        decode_image(b"", name="x.png")


@pytest.mark.parametrize("data", [b"<html>not here</html>", b"\xff\xd8 no jpeg", bytes(100)])
def test_what_is_no_image(data):
    with pytest.raises(UserError, match=r"^x\.jpg: not an image that can be read"):
        decode_image(data, name="x.jpg")


def test_floating_point_pixels(encode):
    with pytest.raises(UserError, match=r"^x\.tif: holds floating-point pixels"):
        decode_image(encode(np.ones((4, 4), np.float32), "TIFF"), name="x.tif")


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bomb_is_refused_before_it_is_unpacked(side):
    """A PNG header may claim any size; Pillow itself only warns at the first of these."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 4) + b"IDAT" + bytes(8)
    assert side * side > MAX_PIXELS
    with pytest.raises(UserError, match=r"^bomb\.png: .*at most 89,478,485 pixels are read"):
        decode_image(data, name="bomb.png")


def test_decompression_bomb_jpeg(encode):
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "JPEG"))
    size = data.index(b"\xff\xc0") + 5  # height and width in the start-of-frame segment
    data[size : size + 4] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(UserError, match=r"^bomb\.jpg: .*at most 89,478,485 "):
        decode_image(bytes(data), name="bomb.jpg")


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_jpeg_has_its_size_rounded_up_and_its_colours(photo, encode, reduction):
    image = photo[:421, :635]
    reduced = decode_image(encode(image, "JPEG", quality=95), reduction=reduction)
    assert reduced.shape == (-(-421 // reduction), -(-635 // reduction), 3)
    blocks = image[: 421 // reduction * reduction, : 635 // reduction * reduction]
    shape = (blocks.shape[0] // reduction, reduction, blocks.shape[1] // reduction, reduction, 3)
    means = blocks.reshape(shape).mean((1, 3))
    assert np.abs(reduced[: means.shape[0], : means.shape[1]] - means).mean() < 4


def test_size_in_a_jpegs_header(photo, encode):
    assert jpeg_size(encode(photo, "JPEG")) == (427, 640)
    assert jpeg_size(encode(photo[..., 0], "JPEG")) == (427, 640)


def test_what_cannot_be_decoded_reduced_has_no_such_size(photo, encode):
    turned = Image.Exif()
    turned[0x0112] = 6
    cmyk = Image.fromarray(photo).convert("CMYK")
    for data in (
        encode(photo),
        encode(cmyk, "JPEG"),
        encode(photo, "JPEG", exif=turned),
        encode(photo, "JPEG")[:100],
        b"\xff\xd8 no jpeg",
        b"",
    ):
        assert jpeg_size(data) is None

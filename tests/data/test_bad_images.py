"""A folder with every kind of odd and broken image: right pixels, or one line with the path."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.pipeline import make_eval_batches, make_train_iterator
from vitswin_jax.data.sources.open import open_source

SQUASH = Preprocess((6, 8), crop_mode="squash")
PLAIN = TrainTransform((6, 8), crop="none", flip=False)
ORANGE = (250, 120, 20)


def orange(mode="RGB", kind="PNG", **options):
    data = io.BytesIO()
    image = Image.new("RGB", (8, 6), ORANGE)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(data, kind, **options)
    return data.getvalue()


def png16(pixels, colour_type):
    """A PNG of 16 bits, which Pillow reads and does not write; pixels uint16 (h, w, c)."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep(channels, colour_type):
    pixels = np.zeros((6, 8, channels), np.uint16)
    pixels[..., :3] = np.array(ORANGE[:channels]) * 257
    if channels in (2, 4):
        pixels[..., -1] = 65535
    return png16(pixels, colour_type)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    return orange(kind="JPEG", quality=95, exif=exif)


ODD = {
    "cmyk.jpg": orange("CMYK", "JPEG", quality=95),
    "palette.png": orange("P"),
    "alpha.png": orange("RGBA"),
    "rotated.jpg": rotated(),
    "png-inside.jpg": orange(),
    "deep-rgb.png": deep(3, 2),
    "deep-rgba.png": deep(4, 6),
}
BROKEN = {
    "corrupt.jpg": orange(kind="JPEG")[:300],
    "zero.jpg": b"",
    "html.png": b"<html>not found</html>",
    "cut.png": orange()[:48],
}


def folder(root, files):
    (root / "test" / "class").mkdir(parents=True)
    for name, data in files.items():
        (root / "test" / "class" / name).write_bytes(data)
    return open_source(str(root), split="test")


def test_odd_images_are_what_they_show(tmp_path):
    source = folder(tmp_path, ODD)
    (batch,) = make_eval_batches(source, batch_size=len(ODD), preprocess=SQUASH)
    assert np.abs(batch["image"].astype(int) - ORANGE).max() <= 6
    upright = decode_image(source[sorted(ODD).index("rotated.jpg")]["image"])
    assert upright.shape == (8, 6, 3)


def test_deep_grey_with_alpha():
    pixels = np.array([[[40 * 257, 65535], [40 * 257, 0]]], np.uint16)
    np.testing.assert_array_equal(decode_image(png16(pixels, 4))[0], [[40] * 3, [255] * 3])


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_images_are_one_line_with_the_path(tmp_path, name):
    source = folder(tmp_path, {"good.png": orange(), name: BROKEN[name]})
    train = make_train_iterator(source, batch_size=2, transform=PLAIN, seed=0)
    evaluate = iter(make_eval_batches(source, batch_size=2, preprocess=SQUASH))
    for batches in (train, evaluate):
        with pytest.raises(UserError) as caught:
            next(batches)
        batches.close()
        assert str(caught.value).startswith(f"{tmp_path}/test/class/{name}: ")
        assert "\n" not in str(caught.value)


def test_skipped_images_are_blank_and_masked_never_noise(tmp_path, caplog):
    source = folder(tmp_path, BROKEN | {"good.png": orange()})
    train = make_train_iterator(source, batch_size=5, transform=PLAIN, seed=0, on_unreadable="skip")
    batch = next(train)
    train.close()
    assert batch["mask"].sum() == 1
    np.testing.assert_array_equal(batch["image"][batch["mask"] == 0], 0)
    np.testing.assert_array_equal(batch["image"][batch["mask"] == 1][0], np.full((6, 8, 3), ORANGE))
    for name in BROKEN:
        assert f"{tmp_path}/test/class/{name}: " in caplog.text


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_very_wide_image(encode, kind):
    levels = np.linspace(0, 255, 20_000).astype(np.uint8)
    wide = np.repeat(np.repeat(levels[None, :, None], 40, axis=0), 3, axis=2)
    image = decode_image(encode(wide, kind))
    assert image.shape == (40, 20_000, 3)
    assert np.abs(image.astype(int) - wide).max() <= 2
    small = SQUASH.image(image)[..., 0].mean(0)
    np.testing.assert_allclose(small, 255 * (np.arange(8) + 0.5) / 8, atol=2)


def class_folder(root, eps):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / f"{name}.jpg").write_bytes(eps)
    return root


def shard(root, eps):
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as archive:
        for name, data in {"cat.jpg": eps, "cat.cls": b"0"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return root


def table(root, eps):
    class_folder(root, eps)
    (root / "cats.csv").write_text("path,label\ncat/cat.jpg,cat\n")
    return root / "cats.csv"


@pytest.mark.parametrize("write", [class_folder, shard, table])
def test_no_image_starts_a_program(tmp_path, monkeypatch, ghostscript, eps, write):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_source(str(write(tmp_path / "images", eps)), split="all")
    train = make_train_iterator(source, batch_size=1, transform=PLAIN, seed=0)
    evaluate = iter(make_eval_batches(source, batch_size=1, preprocess=SQUASH))
    for batches in (train, evaluate):
        with pytest.raises(
            UserError, match=r"/(cat|dog)(.jpg)?: not an image .* JPEG, PNG, .* expected\."
        ):
            next(batches)
        batches.close()
    assert not ghostscript.exists()


def test_pillow_would_start_a_program(ghostscript, eps):
    """The tests above can fail: this image makes all of Pillow start `gs`."""
    with pytest.raises(OSError), Image.open(io.BytesIO(eps)) as image:
        image.load()
    assert ghostscript.exists()

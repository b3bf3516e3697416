"""Which part of a photograph is taken, and what the fast ways to its pixels cost in grey levels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from vitswin_jax.data.augment import crop
from vitswin_jax.data.augment.crop import cut_and_resize, random_box, resize_box
from vitswin_jax.data.decode import decode_image

HOW = {"interpolation": "bicubic", "resizer": "pillow", "reduced_decode": True}


def rng(seed=0):
    return np.random.default_rng(seed)


def enlarge(photo, width, height):
    return Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS)


def test_boxes_are_uniform_in_area_and_in_the_logarithm_of_their_aspect():
    boxes = [random_box((1000, 1000), (0.1, 0.4), (0.5, 2.0), rng(seed)) for seed in range(3000)]
    left, top, right, bottom = np.array(boxes).T
    areas, aspects = (right - left) * (bottom - top) / 1e6, (right - left) / (bottom - top)
    assert 0.099 < areas.min() < areas.max() < 0.401
    np.testing.assert_allclose(np.histogram(areas, 5, (0.1, 0.4))[0], 600, atol=110)
    np.testing.assert_allclose(np.histogram(np.log2(aspects), 4, (-1, 1))[0], 750, atol=120)
    for start, end in ((left, right), (top, bottom)):
        assert start.min() >= 0
        assert end.max() <= 1000
        np.testing.assert_allclose((start / (1000 - (end - start))).mean(), 0.5, atol=0.03)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_opencvs_pixels_are_near_pillows(name, interpolation):
    """Nothing aliases: without the averaging, four boxes of china.jpg are off by 5 levels."""
    photo, differences = sklearn.datasets.load_sample_image(name), []
    for box in ((0, 0, 640, 427), (40, 30, 420, 330), (100, 90, 260, 250), (10, 200, 600, 300)):
        fast, exact = (
            resize_box(photo, box, (224, 224), interpolation=interpolation, resizer=resizer)
            for resizer in ("opencv", "pillow")
        )
        assert fast.shape == exact.shape == (224, 224, 3)
        differences.append(np.abs(fast.astype(int) - exact).mean())
    assert np.mean(differences) < 2.0


@pytest.mark.parametrize("resizer", ["opencv", "pillow"])
def test_a_box_is_cut_out_before_it_is_resized(resizer):
    """As torchvision does: nothing from outside the box shows at its edge."""
    image = np.full((60, 80, 3), 255, np.uint8)
    image[10:50, 20:70] = 9
    cut = resize_box(image, (20, 10, 70, 50), (17, 23), interpolation="bicubic", resizer=resizer)
    np.testing.assert_array_equal(cut, np.full((17, 23, 3), 9))


def test_pillow_is_torchvisions_crop_and_resize(photo):
    expected = Image.fromarray(photo).crop((30, 20, 330, 380)).resize((96, 64), Image.BICUBIC)
    box = resize_box(photo, (30, 20, 330, 380), (64, 96), interpolation="bicubic", resizer="pillow")
    np.testing.assert_array_equal(box, np.asarray(expected))


@pytest.mark.parametrize(("reduction", "size"), [(2, 192), (4, 96), (8, 48)])
def test_reduced_decoding_shows_the_same_part_with_nearly_the_same_levels(
    photo, encode, reduction, size, monkeypatch
):
    """Odd sizes: the last pixel of a reduced image stands for fewer than `reduction`."""
    data = encode(enlarge(photo, 1283, 859), "JPEG", quality=92)
    used = []
    monkeypatch.setattr(
        crop,
        "decode_image",
        lambda *rest, **how: used.append(how.get("reduction", 1)) or decode_image(*rest, **how),
    )
    where = {"scale": (0.3, 0.9), "ratio": (3 / 4, 4 / 3)}
    for seed in range(8):
        fast, exact = (
            cut_and_resize(data, (size, size), rng(seed), **where, **HOW | {"reduced_decode": how})
            for how in (True, False)
        )
        difference = fast.astype(int) - exact
        assert np.abs(difference).mean() < 3.5
        assert abs(difference.mean()) < 0.3
    assert reduction in used


def test_reduced_decoding_keeps_the_geometry(encode):
    """Brightness is the column: a crop's levels say where its pixels lay, to a fraction of one."""
    ramp = np.broadcast_to(np.linspace(0, 255, 1021)[None, :, None], (1003, 1021, 3))
    data = encode(ramp.round().astype(np.uint8), "JPEG", quality=95)
    where = {"scale": (0.6, 0.6), "ratio": (1.0, 1.0)}
    for seed in range(5):
        cut = cut_and_resize(data, (64, 64), rng(seed), **where, **HOW)
        left, _, right, _ = random_box((1003, 1021), *where.values(), rng(seed))
        columns = left + (np.arange(64) + 0.5) * (right - left) / 64 - 0.5
        inner = slice(2, -2)  # the outermost see nothing beyond the box
        levels = cut[..., 0].mean(0)[inner]
        np.testing.assert_allclose(levels, columns[inner] * 255 / 1020, atol=0.6)


def test_crops_that_shrink_less_are_decoded_in_full(photo, encode):
    data = encode(photo, "JPEG", quality=90)
    where = {"scale": (0.2, 0.9), "ratio": (3 / 4, 4 / 3)}
    for seed in range(5):
        one, other = (
            cut_and_resize(data, (224, 224), rng(seed), **where, **HOW | {"reduced_decode": how})
            for how in (True, False)
        )
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photographs_are_cut_upright(photo, encode, orientation):
    image = enlarge(photo, 1280, 854)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, "JPEG", quality=95, exif=exif)
    upright = decode_image(data)
    aspect = upright.shape[1] / upright.shape[0]
    whole = {"scale": (1.0, 1.0), "ratio": (aspect, aspect)}
    expected = Image.fromarray(upright).resize((64, 96), Image.Resampling.BICUBIC)
    cut = cut_and_resize(data, (96, 64), rng(), **whole, **HOW)
    assert np.abs(cut.astype(int) - np.asarray(expected)).mean() < 3.5


def test_files_that_only_pillow_reads_come_in_full_and_are_cut_right(photo, encode):
    """A CMYK JPEG and a PNG: no reduction, the same part."""
    image = enlarge(photo, 1280, 854)
    where = {"scale": (0.5, 0.5), "ratio": (1.0, 1.0)}
    for data in (encode(image.convert("CMYK"), "JPEG", quality=95), encode(image)):
        cut = cut_and_resize(data, (64, 64), rng(3), **where, **HOW)
        pixels = decode_image(data)
        box = random_box(pixels.shape[:2], *where.values(), rng(3))
        expected = resize_box(pixels, box, (64, 64), interpolation="bicubic", resizer="pillow")
        np.testing.assert_array_equal(cut, expected)


def test_a_damaged_jpeg_that_comes_in_full_is_cut_right(photo, encode, monkeypatch):
    """The header promises a reduction, Pillow then reads the whole: the box must know."""
    data = encode(enlarge(photo, 1280, 854), "JPEG", quality=90)
    where = {"scale": (0.9, 0.9), "ratio": (1.5, 1.5)}
    expected = cut_and_resize(data, (64, 96), rng(), **where, **HOW | {"reduced_decode": False})
    full = decode_image(data)
    monkeypatch.setattr(crop, "decode_image", lambda *_, **__: full)
    np.testing.assert_array_equal(cut_and_resize(data, (64, 96), rng(), **where, **HOW), expected)
    assert Image.open(io.BytesIO(data)).size == (1280, 854)

"""Files of one channel, of four and of more: what each gives a model of so many channels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.crop import pillow_resize, resize_box
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.channels import as_rgb, band_by_band
from vitswin_jax.data.decode import decode_image

RNG = np.random.default_rng(0)
FOUR = RNG.integers(0, 256, (20, 30, 4), np.uint8)
BANDS = RNG.integers(0, 256, (20, 30, 6), np.uint8)


def npy(array, **how):
    data = io.BytesIO()
    np.save(data, array, **how)
    return data.getvalue()


def claims(shape):
    """A file whose header states a shape, and that holds no pixels."""
    data = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(data, header)
    return data.getvalue()


def resized(image, size):
    """Each band by Pillow on its own, which knows nothing of the others."""
    bands = [Image.fromarray(image[..., i]).resize(size[::-1], 3) for i in range(image.shape[2])]
    return np.stack([np.asarray(band) for band in bands], -1)


def test_one_channel_is_a_grey_images_own_and_the_luminance_of_colours(photo, encode):
    grey = photo[..., 1]
    np.testing.assert_array_equal(decode_image(encode(grey), channels=1)[..., 0], grey)
    luminance = np.asarray(Image.fromarray(photo).convert("L"))
    np.testing.assert_array_equal(decode_image(encode(photo), channels=1)[..., 0], luminance)
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16)
    deep = decode_image(encode(levels[None].repeat(3, 0)), channels=1)
    np.testing.assert_array_equal(deep[0, :, 0], np.arange(256))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_four_channels_are_colours_and_alpha_as_they_are(encode, kind):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encode(FOUR, kind, **options), channels=4), FOUR)
    assert decode_image(encode(FOUR, kind, **options)).shape == (20, 30, 3)


def test_other_pictures_with_alpha(encode):
    np.testing.assert_array_equal(decode_image(encode(FOUR[..., :2]), channels=2), FOUR[..., :2])
    palette = Image.fromarray(FOUR[..., :3]).quantize(16)
    data = encode(palette, transparency=3)
    alpha = np.where(np.asarray(palette) == 3, 0, 255)
    np.testing.assert_array_equal(decode_image(data, channels=4)[..., 3], alpha)


def test_a_picture_lies_upright_in_four_channels_too(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(encode(FOUR, "PNG", exif=exif), channels=4)
    np.testing.assert_array_equal(turned, np.rot90(FOUR, 3))


@pytest.mark.parametrize("channels", [6, None])
def test_arrays_have_any_number_of_channels(channels):
    np.testing.assert_array_equal(decode_image(npy(BANDS), channels=channels), BANDS)
    deep = BANDS.astype(">u2") * 257
    np.testing.assert_array_equal(decode_image(npy(deep), channels=channels), BANDS)


def test_arrays_of_one_and_of_three_channels_become_each_other():
    grey, colours = BANDS[..., 0], BANDS[..., :3]
    np.testing.assert_array_equal(decode_image(npy(grey)), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(decode_image(npy(grey), channels=1)[..., 0], grey)
    luminance = np.asarray(Image.fromarray(colours).convert("L"))
    np.testing.assert_array_equal(decode_image(npy(colours), channels=1)[..., 0], luminance)


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (npy(BANDS), 3, "x: has 6 channels, and the model takes 3 (model.in_chans)"),
        (npy(BANDS), 5, "has 6 channels, and the model takes 5"),
        (npy(BANDS[..., 0]), 4, "x: has 1 channel, and the model takes 4"),
        (npy(BANDS.astype(np.float32)), 6, "shape (20, 30, 6) and dtype float32; an image is (he"),
        (npy(BANDS[0, 0]), 6, "has shape (6,)"),
        (npy(BANDS[:0]), 6, "has shape (0, 30, 6) and no pixels"),
        (npy(BANDS)[:-1], 6, "x: the array is damaged: cut short"),
        (npy(BANDS)[:40], 6, "x: the array is damaged: its header cannot be read"),
        (npy(np.array([[None]], object), allow_pickle=True), 1, "dtype object; an image is"),
        (claims((100_000, 100_000, 6)), 6, "x: has 60,000,000,000 bytes of pixels; at most"),
    ],
)
def test_arrays_that_are_no_such_images_are_one_line(data, channels, message):
    with pytest.raises(UserError) as error:
        decode_image(data, name="x", channels=channels)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "given"), [("JPEG", 3), ("PNG", 3), ("TIFF", 3)])
def test_pictures_with_too_few_channels_are_refused(encode, kind, given):
    with pytest.raises(UserError, match=f"has {given} channels, and the model takes 4"):
        decode_image(encode(FOUR[..., :3], kind), channels=4)


def test_inks_are_no_four_channels(encode):
    inks = encode(Image.new("CMYK", (8, 8), (1, 2, 3, 4)), "TIFF")
    with pytest.raises(UserError, match=r"has 4 bands \(TIFF, CMYK\).*save an array"):
        decode_image(inks, channels=4)


@pytest.mark.parametrize("image", [FOUR, BANDS, BANDS[..., :1], FOUR[..., :2]], ids="4612")
def test_bands_are_resized_each_alone(image):
    """Pillow's own resizing of four bands would weight three of them by the last."""
    size, box = (9, 12), (0, 0, 30, 20)
    np.testing.assert_array_equal(pillow_resize(image, size, "bicubic"), resized(image, size))
    for resizer in ("opencv", "pillow"):
        how = {"interpolation": "bicubic", "resizer": resizer}
        each = [resize_box(image[..., i : i + 1], box, size, **how) for i in range(image.shape[2])]
        np.testing.assert_array_equal(resize_box(image, box, size, **how), np.concatenate(each, 2))


@pytest.mark.parametrize("crop", ["random_resized", "random", "shift", "none"])
def test_augmentation_takes_all_bands_along_one_way(crop):
    how = {"crop": crop, "rotate": 20.0, "shift": 0.2, "zoom": 0.1, "interpolation": "bicubic"}
    whole = TrainTransform((16, 24), mean=(0.5,) * 6, **how)
    part = TrainTransform((16, 24), **how)
    for seed in range(4):
        got = whole(npy(BANDS), np.random.default_rng(seed))
        each = [part(BANDS[..., i : i + 3], np.random.default_rng(seed)) for i in (0, 3)]
        np.testing.assert_array_equal(got, np.concatenate(each, 2))


@pytest.mark.parametrize(
    "colours",
    [
        {"rand_augment": "rand-m9-mstd0.5-inc1"},
        {"rand_augment": "randaug(2,15)"},
        {"auto_augment": "3a"},
        {"auto_augment": "original"},
        {"color_jitter": 0.4, "hue": 0.2, "grayscale": 0.5},
    ],
)
def test_one_channel_is_augmented_as_a_grey_image_is(photo, encode, colours):
    data = encode(photo[:64, :96, 0])
    grey = TrainTransform((32, 48), mean=(0.4,), **colours)
    three = TrainTransform((32, 48), mean=(0.4,) * 3, **colours)
    for seed in range(12):
        got = grey(data, np.random.default_rng(seed))
        expected = three(data, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.repeat(got, 3, 2), expected)


def test_operations_of_colour_are_refused_for_other_numbers_of_channels():
    with pytest.raises(UserError) as error:
        TrainTransform((8, 8), mean=(0.5,) * 4, rand_augment="rand-m9", hue=0.1)
    assert str(error.value) == (
        "augment: rand_augment, hue must be None or 0 for images of 4 channels (model.in_chans): "
        "they are for 1 or 3."
    )


def test_statistics_become_their_average_as_timm_has_it():
    base = Preprocess((8, 8), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for channels in (1, 4):
        fitted = base.fitted((6, 4), channels)
        np.testing.assert_allclose(fitted.mean, [np.mean(base.mean)] * channels)
        np.testing.assert_allclose(fitted.std, [np.mean(base.std)] * channels)
        assert (fitted.img_size, fitted.channels) == ((6, 4), channels)
    assert base.fitted((8, 8), 3) == base


def test_evaluation_normalises_each_channel_by_its_own_numbers():
    mean, std = np.arange(1, 7) / 10, np.arange(1, 7) / 5
    preprocess = Preprocess((20, 30), mean=list(mean), std=list(std), crop_fraction=1.0)
    expected = (BANDS.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(preprocess(npy(BANDS)), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"must be a number for each channel"):
        Preprocess((8, 8), mean=(0.5,) * 4)


def test_what_is_shown_has_three_channels():
    np.testing.assert_array_equal(as_rgb(BANDS), BANDS[..., :3])
    np.testing.assert_array_equal(as_rgb(BANDS[..., :2]), np.repeat(BANDS[..., :1], 3, 2))
    np.testing.assert_array_equal(band_by_band(lambda x: x[::2], BANDS), BANDS[::2])

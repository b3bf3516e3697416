"""The evaluation transform against Pillow step by step; where augmented pixels came from."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment import transforms
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.decode import decode_image


def two_steps(image, img_size, fraction, resample):
    """Resizes until the image covers img_size / fraction, then crops, as torchvision does."""
    cover_h, cover_w = (int(side / fraction) for side in img_size)
    h, w = image.shape[:2]
    if cover_h * w >= cover_w * h:
        resized = (cover_h, max(int(cover_h * w / h), cover_w))
    else:
        resized = (max(int(cover_w * h / w), cover_h), cover_w)
    top, left = ((full - side) / 2 for full, side in zip(resized, img_size, strict=True))
    top, left = round(top), round(left)
    whole = Image.fromarray(image).resize(resized[::-1], resample)
    return np.asarray(whole.crop((left, top, left + img_size[1], top + img_size[0])))


# No image here is more than twice as tall as wide: those Pillow 13 resizes in another order.
SHAPES = [(427, 640), (640, 427), (224, 224), (333, 500), (300, 1200), (60, 47), (8, 8), (5, 70)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("img_size", "fraction"),
    [
        ((224, 224), 0.875),
        ((224, 224), 0.9),
        ((64, 96), 0.875),
        ((96, 96), 0.95),
        ((96, 64), 1.0),
        ((32, 32), 1.0),
    ],
)
def test_preprocess_equals_resize_then_crop(photo, img_size, fraction, interpolation):
    preprocess = Preprocess(img_size, crop_fraction=fraction, interpolation=interpolation)
    resample = Image.Resampling[interpolation.upper()]
    for shape in SHAPES:
        image = np.asarray(Image.fromarray(photo).resize(shape[::-1]))
        expected = two_steps(image, img_size, fraction, resample)
        assert expected.shape == (*img_size, 3)
        np.testing.assert_array_equal(preprocess.image(image), expected, err_msg=str(shape))


def test_preprocess_takes_the_known_pixels_of_imagenet_evaluation():
    """Resize 500x375 to 341x256 and cut 224 from (16, 58): spelt out, no rounding rule shared."""
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    resized = Image.fromarray(image).resize((341, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((58, 16, 58 + 224, 16 + 224)))
    np.testing.assert_array_equal(Preprocess((224, 224)).image(image), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0])
def test_jpegs_are_evaluated_as_pillow_reads_and_resizes_them(photo, encode, fraction, options):
    data = encode(photo, "JPEG", quality=85, **options)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for kernel in ("bicubic", "bilinear"):
        preprocess = Preprocess((224, 224), crop_fraction=fraction, interpolation=kernel)
        resample = Image.Resampling[kernel.upper()]
        expected = two_steps(pillow, (224, 224), fraction, resample)
        np.testing.assert_array_equal(preprocess.image(decode_image(data)), expected)


@pytest.mark.parametrize("shape", [(640, 200), (640, 90)])
def test_tall_images_are_about_a_level_from_another_pillow(photo, shape):
    """Pillow 13 resizes their columns first, older ones their rows: a rounding apart."""
    image = np.asarray(Image.fromarray(photo).resize(shape[::-1]))
    for fraction in (0.875, 1.0):
        expected = two_steps(image, (64, 64), fraction, Image.Resampling.BICUBIC)
        found = Preprocess((64, 64), crop_fraction=fraction).image(image)
        difference = np.abs(found.astype(int) - expected)
        assert difference.max() <= 2
        assert (difference > 1).mean() < 1e-3


def test_squash_keeps_every_part_of_the_image(photo):
    preprocess = Preprocess((48, 64), crop_fraction=1.0, crop_mode="squash")
    expected = Image.fromarray(photo).resize((64, 48), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(preprocess.image(photo), np.asarray(expected))


def test_squash_crop_cuts_the_middle_out_of_the_squashed_image(photo):
    """timm: Resize((256, 292)) of both sides, and CenterCrop((224, 256)), at crop_pct 0.875."""
    preprocess = Preprocess((224, 256), crop_fraction=0.875, crop_mode="squash_crop")
    whole = np.asarray(Image.fromarray(photo).resize((292, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocess.image(photo), whole[16:240, 18:274])


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_extremely_long_image_is_not_resized_as_a_whole(shape):
    """Covering 256 pixels, 1x60000 would be 256x15360000: 12 GB. Its middle is what counts."""
    image = np.zeros((*shape, 3), np.uint8)
    middle = [slice(None) if side == 1 else slice(20_000, 40_000) for side in shape]
    image[tuple(middle)] = 9
    np.testing.assert_array_equal(Preprocess((224, 224)).image(image), 9)


def test_normalize_is_affine_on_pixels_between_zero_and_one():
    preprocess = Preprocess((2, 2), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1) * np.ones(3, np.uint8)
    expected = [[[[(x - m) / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
                  for x in (0.0, 0.2, 1.0)]]]  # fmt: skip
    normalized = preprocess.normalize(images)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, rtol=1e-5)


def test_bytes_and_pixels_are_preprocessed_alike(photo, encode):
    preprocess = Preprocess((32, 32))
    expected = preprocess.normalize(preprocess.image(photo))
    np.testing.assert_array_equal(preprocess(photo), expected)
    np.testing.assert_array_equal(preprocess(encode(photo)), expected)


def test_preprocess_survives_json():
    preprocess = Preprocess((224, 192), crop_fraction=0.9, interpolation="bilinear")
    stored = json.loads(json.dumps(dataclasses.asdict(preprocess)))
    assert Preprocess(**stored) == preprocess


def test_preprocess_names_everything_that_is_wrong():
    with pytest.raises(UserError) as error:
        Preprocess((0, 32), interpolation="bicubik", crop_mode="centre", crop_fraction=1.5)
    message = str(error.value)
    assert message.startswith("preprocess: ")
    assert "\n" not in message
    for part in (
        "img_size=(0, 32)",
        "did you mean 'bicubic'?",
        "did you mean 'center'?",
        "[0.05, 1]",
    ):
        assert part in message


def test_train_transform_names_everything_that_is_wrong():
    with pytest.raises(UserError) as error:
        TrainTransform((8, 8), crop="shfit", scale=(0.5, 2.0), rotate=-3.0, zoom=2.0, shift=1.0)
    message = str(error.value)
    for part in ("did you mean 'shift'?", "scale=(0.5, 2.0)", "rotate=-3.0", "zoom=2.0", "shift="):
        assert part in message


def origins(height, width):
    """Returns an image that says where each pixel is: red the column, green the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.meshgrid(np.arange(width), np.arange(height))
    return image


def test_random_resized_crop_keeps_its_area_and_aspect_ratio():
    image = origins(200, 250)
    transform = TrainTransform(
        (16, 16), scale=(0.2, 0.6), ratio=(0.5, 2.0), flip=False, interpolation="nearest"
    )
    areas, ratios, lefts = [], [], []
    for seed in range(300):
        cropped = transform(image, np.random.default_rng(seed)).astype(int)
        columns, rows = cropped[..., :2].reshape(-1, 2).T
        # Of 16 samples the outer two lie half a sample inside the box.
        width, height = (np.ptp(side) * 16 / 15 for side in (columns, rows))
        areas.append(width * height / (200 * 250))
        ratios.append(width / height)
        lefts.append(columns.min() - width / 32)
    assert 0.17 < min(areas) < 0.25
    assert 0.5 < max(areas) < 0.65
    assert 0.45 < min(ratios) < 0.7
    assert 1.4 < max(ratios) < 2.2
    assert min(lefts) < 10
    assert max(lefts) > 100


def test_random_resized_crop_of_an_image_that_is_too_long():
    """No crop fits the ratio at full area: the middle is taken, as large as it goes."""
    transform = TrainTransform((8, 8), scale=(1.0, 1.0), flip=False, interpolation="nearest")
    columns = transform(origins(10, 250), np.random.default_rng(0))[..., 0]
    assert 115 <= columns.min() < columns.max() <= 135


def test_whole_image_unchanged_where_nothing_is_to_be_augmented(photo):
    plain = TrainTransform((40, 48), crop="none", flip=False)
    expected = Preprocess((40, 48), crop_mode="squash").image(photo)
    np.testing.assert_array_equal(plain(photo, np.random.default_rng(0)), expected)


def test_half_of_the_images_are_mirrored():
    image = origins(4, 6)
    transform = TrainTransform((4, 6), crop="none", flip=True)
    mirrored = [
        np.array_equal(transform(image, np.random.default_rng(seed)), image[:, ::-1])
        for seed in range(200)
    ]
    unchanged = [
        np.array_equal(transform(image, np.random.default_rng(seed)), image) for seed in range(200)
    ]
    assert 70 < sum(mirrored) < 130
    assert sum(mirrored) + sum(unchanged) == 200


def similarity(image):
    """Fits `origin = scale * rotation * pixel + offset` to the inner pixels of moved origins."""
    inner = image[12:-12, 12:-12, :2].astype(float)
    rows, columns = np.mgrid[12 : image.shape[0] - 12, 12 : image.shape[1] - 12]
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1).reshape(-1, 3)
    (a, c), (b, d), offset = np.linalg.lstsq(pixels, inner.reshape(-1, 2), rcond=None)[0]
    residual = inner.reshape(-1, 2) - pixels @ [[a, c], [b, d], offset]
    centre = np.array([image.shape[1] - 1, image.shape[0] - 1]) / 2
    inverse = np.array([[a, b], [c, d]])
    moved = centre - np.linalg.solve(inverse, centre - offset)  # minus where the centre went
    return np.degrees(np.arctan2(b, a)), 1 / np.hypot(a, b), moved, np.abs(residual).max()


def test_a_random_crop_is_any_part_of_the_image_that_covers():
    """40 x 60 pixels are just what covers 35 x 35 over 0.875: nothing is resized."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., :2] = np.stack(np.mgrid[:40, :60], axis=-1)
    transform = TrainTransform((35, 35), crop="random", crop_fraction=0.875, flip=False)
    corners = set()
    for seed in range(400):
        part = transform(image, np.random.default_rng(seed))
        top, left = part[0, 0, :2]
        np.testing.assert_array_equal(part, image[top : top + 35, left : left + 35])
        corners.add((int(top), int(left)))
    assert {top for top, _ in corners} == set(range(6))
    assert {left for _, left in corners} == set(range(26))


def test_small_affine_is_a_bounded_turn_zoom_and_shift():
    image = origins(60, 50)
    transform = TrainTransform((60, 50), crop="shift", shift=0.1, rotate=15.0, zoom=0.2, flip=False)
    fits = [similarity(transform(image, np.random.default_rng(seed))) for seed in range(200)]
    angles, zooms, moved, residuals = (np.array(part) for part in zip(*fits, strict=True))
    assert residuals.max() < 1.0  # rounding to grey levels
    assert 12 < np.abs(angles).max() < 15.3
    assert abs(angles.mean()) < 2
    assert 1.15 < zooms.max() < 1.21
    assert 0.82 < zooms.min() < 0.87
    limit = np.array([50, 60]) * 0.1
    assert (np.abs(moved).max(0) < limit + 0.5).all()
    assert (np.abs(moved).max(0) > limit * 0.9).all()


def test_shift_alone_moves_without_turning():
    transform = TrainTransform((60, 50), crop="shift", shift=0.1, flip=False)
    angle, zoom, moved, _ = similarity(transform(origins(60, 50), np.random.default_rng(1)))
    np.testing.assert_allclose([angle, zoom], [0, 1], atol=0.02)
    assert np.abs(moved).max() > 0.5


@pytest.mark.parametrize("value", [0, 130, 255])
def test_what_comes_into_view_repeats_the_edge(value):
    """A constant image stays constant however it is moved: no black and no white corners."""
    image = np.full((8, 8, 3), value, np.uint8)
    transform = TrainTransform((32, 32), crop="shift", shift=0.9, rotate=180.0, zoom=1.0)
    for seed in range(50):
        np.testing.assert_array_equal(transform(image, np.random.default_rng(seed)), value)


def test_digits_keep_their_strokes(digits):
    """A little shift, turn and zoom loses no ink: the sum of a digit stays near its own."""
    transform = TrainTransform(
        (32, 32), crop="shift", shift=0.05, rotate=10.0, zoom=0.1, flip=False
    )
    plain, source = Preprocess((32, 32), crop_mode="squash"), digits["train"]
    for index in range(0, 200, 10):
        image = decode_image(source[index]["image"])
        ink = transform(image, np.random.default_rng(index)).sum() / plain.image(image).sum()
        assert 0.7 < ink < 1.35


@pytest.mark.parametrize("crop", ["random_resized", "shift", "none"])
def test_chance_comes_from_the_generator_alone(photo, crop):
    transform = TrainTransform((24, 20), crop=crop, rotate=5.0)
    first = transform(photo, np.random.default_rng(3))
    np.testing.assert_array_equal(first, transform(photo, np.random.default_rng(3)))
    assert (first != transform(photo, np.random.default_rng(4))).any()
    assert first.shape == (24, 20, 3)
    assert first.flags.c_contiguous


def test_recolouring_comes_after_the_crop_in_timms_order(photo, monkeypatch):
    """RandAugment sees the mirrored crop, jitter what RandAugment returns, then colour goes."""
    seen = []
    transform = TrainTransform(
        (24, 20),
        rand_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.3,
        grayscale=1.0,
        mean=(0.485, 0.456, 0.406),
    )

    def policy(image, rng, **where):
        seen.append(("policy", image.shape, where))
        return image

    object.__setattr__(transform, "policy", policy)
    for name in ("color_jitter", "grey"):
        record = lambda image, *_, n=name, **how: seen.append((n, image.shape, how)) or image  # noqa: E731
        monkeypatch.setattr(transforms, name, record)
    transform(photo, np.random.default_rng(0))
    assert [name for name, *_ in seen] == ["policy", "color_jitter", "grey"]
    assert {shape for _, shape, _ in seen} == {(24, 20, 3)}
    assert seen[0][2] == {"fill": (124, 116, 104), "interpolation": "bicubic"}
    assert seen[1][2] == {"strength": 0.3, "hue": 0.0}


def test_encoded_and_decoded_images_are_augmented_alike(photo, encode):
    transform = TrainTransform((32, 32), rand_augment="randaug(2,15)", color_jitter=0.4)
    for seed in range(5):
        one, other = (
            transform(image, np.random.default_rng(seed)) for image in (photo, encode(photo))
        )
        np.testing.assert_array_equal(one, other)


def test_policies_change_images_and_take_their_chance_from_the_generator(photo):
    plain = TrainTransform((32, 32))
    for options in (
        {"rand_augment": "rand-m9-mstd0.5-inc1"},
        {"rand_augment": "randaug(2,10)"},
        {"auto_augment": "original"},
        {"auto_augment": "v0-mstd0.5"},
        {"auto_augment": "3a"},
    ):
        transform, changed = TrainTransform((32, 32), **options), 0
        for seed in range(12):
            one, other = (transform(photo, np.random.default_rng(seed)) for _ in range(2))
            np.testing.assert_array_equal(one, other)
            changed += (one != plain(photo, np.random.default_rng(seed))).any()
        assert changed >= 6


def test_colours_and_policies_name_everything_that_is_wrong():
    with pytest.raises(UserError) as error:
        TrainTransform(
            (8, 8),
            interpolation="lanczos",
            resizer="cv2",
            rand_augment="rand-m9-w0",
            auto_augment="orignal",
            color_jitter=1.5,
            hue=0.7,
            grayscale=-1.0,
        )
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "resizer='cv2'",
        "w0 is not understood",
        "'orignal'",
        "cannot both",
        "a policy's interpolation=",
    ):
        assert part in message
    for part in ("color_jitter=1.5", "hue=0.7", "grayscale=-1"):
        assert part in message

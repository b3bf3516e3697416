"""Several views of an image: their shapes, their sizes, and that they are functions of the seed."""

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment import ops
from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.augment.views import Views
from vitswin_jax.data.pipeline import make_train_iterator

WHOLE = TrainTransform((16, 16), scale=(0.4, 1.0))


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(channels=3):
    return rng(1).integers(0, 256, (40, 30, channels), dtype=np.uint8)


def test_there_are_two_whole_views_and_some_small_ones():
    views = Views(local_crops=3, local_size=8).of(WHOLE)
    got = views(picture(), rng(), name="image")
    assert {key: (x.shape, x.dtype) for key, x in got.items()} == {
        "image": ((2, 16, 16, 3), np.uint8),
        "local": ((3, 8, 8, 3), np.uint8),
    }
    assert {key: x.shape for key, x in got.items()} == dict(views.shapes)
    assert not np.array_equal(*got["image"])
    again = views(picture(), rng(), name="image")
    other = views(picture(), rng(2), name="image")
    for key, x in got.items():
        np.testing.assert_array_equal(again[key], x)
        assert not np.array_equal(other[key], x)
    assert list(Views().of(WHOLE)(picture(), rng(), name="image")) == ["image"]


def test_a_small_view_shows_a_small_part():
    """Of an image of two levels, left and right: small parts seldom have both."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    plain = TrainTransform((16, 16), crop="none", flip=False, interpolation="nearest")
    views = Views(local_crops=100, local_size=8, local_scale=(0.02, 0.05)).of(plain)
    got = views(image, rng(), name="image")
    np.testing.assert_array_equal(got["image"][0], got["image"][1])
    both = [0 < small.mean() < 255 for small in got["local"]]
    assert 0.05 < np.mean(both) < 0.5  # a part of 0.14 to 0.22 of the width, placed evenly
    assert 0 < got["image"][0].mean() < 255


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_and_solarize_are_of_the_views_that_they_are_for(channels):
    mean = (0.5,) * channels
    plain = TrainTransform((40, 30), crop="none", flip=False, mean=mean)
    views = Views(blur=(1.0, 0.0, 0.0), solarize=(0.0, 1.0, 0.0), local_crops=1, local_size=40)
    image = picture(channels)
    first, second = views.of(plain)(image, rng(), name="image")["image"]
    rough = np.abs(np.diff(image.astype(int), axis=0)).mean()
    assert np.abs(np.diff(first.astype(int), axis=0)).mean() < rough
    np.testing.assert_array_equal(second, np.where(image < 128, image, 255 - image))
    coloured = np.repeat(image, 3 // channels, 2)
    np.testing.assert_array_equal(
        second, ops.solarize(np.ascontiguousarray(coloured), 128)[..., :channels]
    )


def test_the_stream_of_views_depends_on_seed_epoch_and_image_alone(digits):
    """Whichever host or process makes them, and wherever it begins."""
    transform = Views(local_crops=2, local_size=8).of(WHOLE)

    def take(batches, **options):
        with_views = make_train_iterator(
            digits["test"], batch_size=4, transform=transform, seed=3, **options
        )
        return [next(with_views) for _ in range(batches)]

    whole = take(3)
    (resumed,) = take(1, start_batch=2)
    half = take(3, host_index=1, host_count=2)
    (worker,) = take(1, workers=1, num_batches=1)
    for key in ("image", "local", "label", "mask"):
        np.testing.assert_array_equal(resumed[key], whole[2][key])
        np.testing.assert_array_equal(half[1][key], whole[1][key][2:])
        np.testing.assert_array_equal(worker[key], whole[0][key])
    assert whole[0]["local"].shape == (4, 2, 8, 8, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_crops": 2}, r"local_crops=2 needs a local_size"),
        ({"local_crops": -1}, r"local_crops=-1 must be 0"),
        ({"local_crops": 1, "local_size": 0}, r"local_size=0 must be the pixels"),
        ({"local_scale": (0.5, 0.2)}, r"local_scale=\(0.5, 0.2\) must be"),
        ({"blur": (0.5, 0.5)}, r"blur=\(0.5, 0.5\) must be three probabilities"),
        ({"solarize": (0.0, 2.0, 0.0)}, r"solarize=.* must be three probabilities"),
    ],
)
def test_what_does_not_fit_is_one_line(fields, message):
    with pytest.raises(UserError, match=f"augment: {message}") as error:
        Views(**fields)
    assert "\n" not in str(error.value)


def test_channels_without_colours_are_not_blurred():
    four = TrainTransform((8, 8), crop="none", mean=(0.5,) * 4)
    with pytest.raises(UserError, match="must be 0 for images of 4 channels"):
        Views(blur=(1.0, 0.0, 0.0)).of(four)
    assert Views().of(four)(picture(4), rng(), name="image")["image"].shape == (2, 8, 8, 4)

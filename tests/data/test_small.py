"""Small images: decoded once, kept within a limit, loaded by one thread."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data import pipeline, small
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.pipeline import make_eval_batches, make_train_iterator
from vitswin_jax.data.small import SIDE, SmallImages

TRANSFORM = TrainTransform((16, 16), crop="random_resized", rotate=10.0)


class Images:
    """A source of encoded images that counts how often each is read."""

    name = "images"
    class_names = ("one",)
    multi_label = False

    def __init__(self, *images):
        self.images = images
        self.unreadable = set()
        self.read = Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.read[index] += 1
        if index in self.unreadable:
            raise UserError(f"image {index}: cannot be read.")
        return {"image": self.images[index], "label": 0}

    def label(self, index):
        del index
        return 0

    def describe(self, index):
        return f"image {index}"


@pytest.fixture
def noise(encode):
    """Encodes an image of noise."""

    def noise(height, width, kind="PNG", **options):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        return encode(pixels, kind, **options)

    return noise


def epochs(source, count, **options):
    """Returns the images of some epochs, one epoch after the other."""
    batches = make_train_iterator(
        source,
        batch_size=len(source),
        seed=0,
        num_batches=count,
        **{"transform": TRANSFORM} | options,
    )
    return np.stack([batch["image"] for batch in batches])


def test_small_images_are_read_once_and_come_as_their_pixels(noise):
    source = Images(noise(20, 30), noise(SIDE, SIDE, "JPEG"), noise(5, 4))
    images = SmallImages(source, 3)
    for index in [0, 1, 2] * 3:
        want = decode_image(source.images[index])
        np.testing.assert_array_equal(images.load(index)["image"], want)
        assert images.load(index)["label"] == 0
    assert source.read == {0: 1, 1: 1, 2: 1}


def test_large_images_stay_encoded_and_are_read_each_time(noise):
    source = Images(noise(SIDE, SIDE + 1), noise(SIDE + 1, SIDE, "JPEG", quality=20))
    images = SmallImages(source, 3)
    for index in [0, 1] * 2:
        assert images.load(index)["image"] is source.images[index]
    assert source.read == {0: 2, 1: 2}


def test_a_large_image_in_a_small_file_is_decoded_and_not_kept(encode):
    source = Images(encode(np.zeros((SIDE + 1, SIDE, 3), np.uint8)))
    images = SmallImages(source, 3)
    assert [images.load(0)["image"].shape for _ in range(2)] == [(SIDE + 1, SIDE, 3)] * 2
    assert source.read == {0: 2}


@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_together_keep_at_most_so_much(noise, monkeypatch, processes):
    source = Images(*[noise(10, 10) for _ in range(4)])
    monkeypatch.setattr(small, "AT_MOST", 2 * 300 + 1)
    images = SmallImages(source, 3, processes=processes)
    for index in [*range(4)] * 2:
        images.load(index)
    kept = 2 // processes
    assert source.read == {i: 1 if i < kept else 2 for i in range(4)}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_whether_images_are_kept(noise, monkeypatch, workers):
    source = Images(*[noise(30 + i, 40, "JPEG" if i % 2 else "PNG") for i in range(6)])
    kept = epochs(source, 3, workers=workers)
    monkeypatch.setattr(small, "AT_MOST", 0)
    np.testing.assert_array_equal(epochs(source, 3), kept)


@pytest.mark.parametrize(("side", "together"), [(20, False), (300, True)])
def test_one_thread_loads_small_images(noise, monkeypatch, side, together):
    inside, most = [], []

    class Watched(TrainTransform):
        def __call__(self, image, rng, *, name):
            inside.append(name)
            most.append(len(inside))
            time.sleep(0.005)
            inside.remove(name)
            return super().__call__(image, rng, name=name)

    monkeypatch.setattr(pipeline, "cores", lambda: 3)
    source = Images(*[noise(side, side) for _ in range(4)])
    epochs(source, 20, transform=Watched((16, 16)))
    assert (max(most) > 1) == together


def test_a_source_is_of_small_images_if_three_of_them_are(noise):
    few, many, damaged = noise(20, 20), noise(300, 300), b"damaged"
    assert SmallImages(Images(few), 3).threads() == 1
    for images in ((many, few, few), (few, many, few), (few, few, many)):
        assert SmallImages(Images(*images), 3).threads() is None
    unread = Images(few, damaged)
    unread.unreadable = {1}
    assert SmallImages(unread, 3).threads() is None


def test_a_damaged_small_image_is_one_line_that_names_it(noise):
    data = noise(20, 20)
    with pytest.raises(UserError, match=r"^image 0: the image is damaged"):
        SmallImages(Images(data[:-40]), 3).load(0)
    source = Images(data, data[:-40])
    skipped = epochs(source, 2, on_unreadable="skip")
    assert (skipped.reshape(4, -1).max(1) > 0).sum() == 2


def test_evaluations_of_a_split_decode_its_images_once(noise):
    source = Images(*[noise(20, 20) for _ in range(3)])
    batches = make_eval_batches(source, batch_size=2, preprocess=Preprocess((16, 16)))
    first, second = ([batch["image"] for batch in batches] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    looked_at = {0: 1, 1: 1, 2: 1}  # to choose the number of threads
    assert source.read == Counter(looked_at) + Counter(range(3))

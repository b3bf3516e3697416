"""Data that are Python objects: every form of the same examples gives the same examples."""

import io
import pickle
import sys

import grain
import numpy as np
import pytest
from PIL import Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.fingerprint import fingerprint
from vitswin_jax.data.sources import objects
from vitswin_jax.data.sources.objects import open_objects

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3
PAIRS = list(zip(IMAGES, LABELS, strict=True))


class Torch:
    """As PyTorch's datasets are: no iteration, an index beyond the end raises."""

    def __init__(self, pairs, **more):
        self.pairs = pairs
        self.__dict__.update(more)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


class Tensor:
    """As PyTorch's tensors are, channels first: an array by request."""

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape = self.array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array


def batches(size):
    for i in range(0, 12, size):
        yield {"image": IMAGES[i : i + size], "label": LABELS[i : i + size]}


FORMS = {
    "arrays": lambda: (IMAGES, LABELS),
    "a column of labels": lambda: (IMAGES, LABELS[:, None]),
    "a mapping": lambda: {"image": IMAGES, "label": LABELS},
    "fractions": lambda: ((IMAGES / 255).astype(np.float32), LABELS),
    "whole numbers": lambda: (IMAGES.astype(np.int64), LABELS.astype(np.uint8)),
    "a list of images": lambda: (list(IMAGES), LABELS.tolist()),
    "a list of pairs": lambda: PAIRS,
    "a list of mappings": lambda: [{"image": i, "label": int(n), "id": 3} for i, n in PAIRS],
    "a generator": lambda: (pair for pair in PAIRS),
    "batches": lambda: batches(5),
    "a batch an item": lambda: list(batches(4)),
    "torch": lambda: Torch(PAIRS),
    "torch, channels first": lambda: Torch(
        [(Tensor(np.moveaxis(i, -1, 0) / np.float32(255)), Tensor(n)) for i, n in PAIRS]
    ),
    "torchvision": lambda: Torch(
        [(Image.fromarray(i), int(n)) for i, n in PAIRS], targets=LABELS.tolist()
    ),
    "grain": lambda: grain.MapDataset.source(PAIRS),
    "grain, filtered": lambda: grain.MapDataset.source([*PAIRS, (IMAGES[0], 9)]).filter(
        lambda pair: pair[1] < 9
    ),
    "grain, iterated": lambda: grain.MapDataset.source(PAIRS).to_iter_dataset(),
    "grain, in batches": lambda: grain.MapDataset.source(PAIRS).batch(4),
}


def examples(source):
    """The pixels and labels that the pipeline reads."""
    records = [source[i] for i in range(len(source))]
    images = [decode_image(record["image"]) for record in records]
    assert [record["label"] for record in records] == [source.label(i) for i in range(len(source))]
    return np.stack(images), [record["label"] for record in records]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(form):
    source = open_objects(FORMS[form]()).open("all", holdout=0.25, seed=0)
    images, labels = examples(source)
    np.testing.assert_array_equal(images, IMAGES)
    assert labels == LABELS.tolist() and source.class_names == ("0", "1", "2")
    assert not source.multi_label and source.describe(3) == "data[3]"
    again = pickle.loads(pickle.dumps(source)) if "grain" not in form else source
    np.testing.assert_array_equal(examples(again)[0], IMAGES)


@pytest.mark.parametrize("image", [IMAGES[..., 0], IMAGES[..., :1]])
def test_grey_images_are_grey(image):
    images, _ = examples(open_objects((image, LABELS)).open("all", holdout=0.25, seed=0))
    np.testing.assert_array_equal(images, np.repeat(IMAGES[..., :1], 3, axis=-1))


def test_a_fourth_channel_is_transparency_in_a_pil_image_only():
    levels = RNG.integers(0, 256, (2, 6, 5, 4), np.uint8)
    pictures = [(Image.fromarray(image), n) for n, image in enumerate(levels)]
    source = open_objects(pictures).open("all", holdout=0.25, seed=0)
    np.testing.assert_array_equal(decode_image(source[0]["image"], channels=4), levels[0])
    assert decode_image(source[0]["image"]).shape == (6, 5, 3)
    source = open_objects((levels, [0, 1])).open("all", holdout=0.25, seed=0)
    np.testing.assert_array_equal(decode_image(source[1]["image"], channels=4), levels[1])
    with pytest.raises(UserError, match="has 4 channels, and the model takes 3"):
        decode_image(source[0]["image"])


def test_images_may_differ_in_size_and_be_encoded():
    file = io.BytesIO()
    Image.fromarray(IMAGES[1]).save(file, "PNG")
    data = [(IMAGES[0, :3], 0), (file.getvalue(), 1), (IMAGES[2], 1), (IMAGES[3], 0)]
    source = open_objects(data).open("all", holdout=0.25, seed=0)
    assert decode_image(source[0]["image"]).shape == (3, 5, 3)
    np.testing.assert_array_equal(decode_image(source[1]["image"]), IMAGES[1])


def test_a_part_of_each_class_is_held_out_unless_test_is_given():
    whole = open_objects((IMAGES, LABELS))
    train, test = (whole.open(split, holdout=0.25, seed=0) for split in ("train", "test"))
    assert (len(train), len(test)) == (9, 3) and sorted(examples(test)[1]) == [0, 1, 2]
    both = open_objects(PAIRS, iter(PAIRS[:6]))
    assert [len(both.open(name, holdout=0.25, seed=0)) for name in ("train", "test")] == [12, 6]
    half = both.open("train[:50%]", holdout=0.25, seed=0)
    assert len(half) == 6


def test_names_of_classes():
    animals = np.array(["dog", "cat", "dog", "ant"])
    source = open_objects((IMAGES[:4], animals)).open("all", holdout=0.25, seed=0)
    assert source.class_names == ("ant", "cat", "dog") and examples(source)[1] == [2, 1, 2, 0]
    names = ["dog", "cat", "ant"]
    source = open_objects((IMAGES[:4], animals), class_names=names).open("all", holdout=0.2, seed=0)
    assert source.class_names == tuple(names) and examples(source)[1] == [0, 1, 0, 2]
    vision = Torch(PAIRS, classes=["x", "y", "z", "none"])
    assert open_objects(vision).open("all", holdout=0.2, seed=0).class_names[3] == "none"


def test_rows_of_0_and_1_are_several_labels():
    rows = np.eye(3)[LABELS] + np.eye(3)[(LABELS + 1) % 3]
    source = open_objects((IMAGES, rows)).open("all", holdout=0.25, seed=0)
    assert source.multi_label and source.label(0) == (0, 1) and source.label(2) == (0, 2)


def test_torchs_items_are_read_for_their_labels_only_where_these_are_not_listed():
    class Counting(Torch):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    for more, reads in (({}, 12), ({"targets": LABELS}, 0), ({"target_transform": len}, 12)):
        data = Counting(PAIRS, **more)
        open_objects(data)
        assert data.reads == reads


def test_changed_pixels_or_labels_change_the_fingerprint():
    def digest(*data):
        source = open_objects(data).open("all", holdout=0.25, seed=0)
        return fingerprint(source, source)

    assert digest(IMAGES, LABELS) == digest(IMAGES.copy(), LABELS.tolist())
    other = IMAGES.copy()
    other[3, 2, 1, 0] ^= 1
    assert digest(other, LABELS) != digest(IMAGES, LABELS) != digest(IMAGES, LABELS[::-1])


class Endless(Torch):
    def __len__(self):
        return sys.maxsize


def endless():
    while True:
        yield IMAGES[0], 0


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ((IMAGES, LABELS[:11]), "data: has 12 images and 11 labels"),
        ((IMAGES[0, 0], LABELS), r"data: images have shape \(5, 3\)"),
        ((IMAGES[:0], LABELS[:0]), "data: has no examples"),
        ([], "data: has no examples"),
        (iter([]), "data: has no examples"),
        ((IMAGES, LABELS - 1), r"labels run from -1 to 1; they must be in \[0, 100,000\)"),
        ((IMAGES, LABELS * 10**7), "labels run from 0 to 20,000,000; .* give class_names"),
        ((IMAGES, LABELS / 2), r"labels have shape \(12,\) and dtype float64; they must be whole"),
        ((IMAGES, np.eye(12) * 2), r"labels have shape \(12, 12\); several labels an image"),
        ((IMAGES, np.eye(12) - np.eye(12)), "12 images have no class, such as 0"),
        ((IMAGES, [[1], [2, 3]] * 6), "labels differ in shape"),
        ((IMAGES / 1.0, LABELS), "images: is float64 from 0 to 255; it must be uint8"),
        ((IMAGES / 127.5 - 1, LABELS), "images: is float64 from -1 to 1; it must be uint8"),
        ((IMAGES * np.nan, LABELS), "images: is float64 from nan to nan"),
        ((IMAGES.astype(int) + 1, LABELS), "images: is int64 from 1 to 256"),
        ((IMAGES.astype(complex), LABELS), "images: has dtype complex128"),
        ([(IMAGES[0].ravel(), 0)], r"data\[0\]: has shape \(90,\); an image is"),
        ([PAIRS[0], (IMAGES[1] / 9, 0)], r"data\[1\]: is float64 from"),
        ([IMAGES[0]], r"data\[0\]: is ndarray; an example is \(image, label\)"),
        ([{"pixels": 1}], r"data\[0\]: has the keys pixels; an example is"),
        (iter([(IMAGES[:3], LABELS[:2])]), r"data\[0\]: a batch has 3 images and 2 labels"),
        (Endless(PAIRS), "data: is endless; remove its repeat"),
        (grain.MapDataset.source(PAIRS).repeat(), "data: is endless"),
        (7, "data: is int; it must be"),
    ],
)
def test_what_cannot_be_data_is_one_line(data, line):
    with pytest.raises(UserError, match=line) as raised:
        source = open_objects(data).open("all", holdout=0.25, seed=0)
        examples(source)
    assert len(str(raised.value)) < 400


def test_what_is_read_into_memory_has_a_limit(monkeypatch):
    monkeypatch.setattr(objects, "MOST_BYTES", 10_000)
    with pytest.raises(UserError, match="and may be endless"):
        open_objects(endless())


def test_labels_of_the_test_split_are_of_the_same_classes():
    with pytest.raises(UserError, match=r"data:test: labels run from 3 to 5; .* there are 3 class"):
        open_objects((IMAGES, LABELS), (IMAGES, LABELS + 3))
    with pytest.raises(UserError, match="data:test: has no class bee among its 2"):
        open_objects((IMAGES[:2], ["ant", "cat"]), (IMAGES[:2], ["ant", "bee"]))


def test_a_tensor_that_is_not_here_is_one_line():
    class OnGpu:
        shape = (6, 5, 3)

        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu()")

    with pytest.raises(
        UserError, match=r"data\[0\]: cannot be read as an array; pass NumPy arrays"
    ):
        open_objects([(OnGpu(), 0)])

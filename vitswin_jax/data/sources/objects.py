"""Datasets that are Python objects: arrays, objects with a length and items, iterables.

An image is (height, width) or (height, width, channels), also (channels, height, width) if the
channels are 1, 3 or 4: uint8 in [0, 255], or float in [0, 1], before any normalisation. PIL's
images and encoded ones, as bytes, are read too. A label is a whole number from 0 on, a class's
name, or, of several classes, a row of 0 and 1, one for each class.
"""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from vitswin_jax.core.types import Label, Record, UserError
from vitswin_jax.data.sources.object_labels import Labels, read_labels
from vitswin_jax.data.sources.pixels import as_array, check_image, check_range, encode
from vitswin_jax.data.sources.splits import ALL, TRAIN, Dataset, dataset_of

PREFIX = "python:"
"""Begins `data.dataset` of a run whose data were passed as objects."""
MOST_BYTES = 8_000_000_000
"""The most that is read into memory of what can only be iterated over."""

_ENDLESS = 2**40  # items of a Grain dataset that is repeated for ever
_IMAGES, _LABELS = ("image", "images"), ("label", "labels")  # keys of examples and of batches


@runtime_checkable
class Images(Protocol):
    """Images by their number."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def __getitem__(self, index: int, /) -> Any:
        """Returns one."""


class ObjectSource:
    """Examples of one split that lie in memory, or that an object gives one by one."""

    def __init__(self, name: str, images: Images, labels: Labels, *, fixed: bool) -> None:
        """`images` has an image for each label; `fixed` if one is the same at every access."""
        self.name, self._images, self._labels, self._fixed = name, images, labels, fixed
        self.class_names, self.multi_label = labels.class_names, labels.multi_label

    def __len__(self) -> int:
        return len(self._labels.labels)

    def __getitem__(self, index: SupportsIndex) -> Record:
        place = operator.index(index)
        image = encode(self._images[place], self.describe(place))
        return Record(image=image, label=self.label(place))

    def label(self, index: int) -> Label:
        """Returns the label of an example."""
        return self._labels.labels[index]

    def key(self, index: int) -> str:
        """Returns the number of an example."""
        return str(index)

    def describe(self, index: int) -> str:
        """Returns the source's name and the number of an example."""
        return f"{self.name}[{index}]"

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns labels and, of images that do not change, their digests."""
        labels = [self.label(i) for i in indices]
        if not self._fixed:
            return {"labels": labels}
        images = (encode(self._images[i], self.describe(i)) for i in indices)
        digests = [hashlib.blake2b(image, digest_size=8).hexdigest() for image in images]
        return {"labels": labels, "version": digests}


class _Items:
    """The images of an object with items, which is asked for one at a time.

    Its files and caches need not be safe to use from several threads.
    """

    def __init__(self, items: Any, places: Sequence[int], name: str) -> None:
        self._items, self._places, self._name = items, places, name
        self._one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        place = self._places[index]
        with self._one_at_a_time:
            item = self._items[place]
        return _example(item, f"{self._name}[{place}]")[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_one_at_a_time": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _one_at_a_time=threading.Lock())


def open_objects(
    data: Any, test: Any = None, *, class_names: Sequence[str] | None = None
) -> Dataset:
    """Returns a dataset of objects; undivided unless `test` is given, in a form of its own.

    `data` is a pair (images, labels) or a mapping of "image" and "label", arrays or sequences; an
    object with a length and items, as PyTorch's datasets, Grain's MapDataset and lists of examples
    are; or an iterable of examples or batches, which is read into memory once. An example, or a
    batch of them, is a pair (image, label) or a mapping. `class_names` are by default the object's
    `classes`, names that are sorted, or numbers.

    Raises UserError for data that are none of these, empty or endless, and for images and labels
    that cannot be.
    """
    if test is None:
        whole = _open(data, "data", class_names)
        return Dataset(f"{PREFIX}data", {ALL: lambda: whole})
    train = _open(data, f"data:{TRAIN}", class_names)
    held_out = _open(test, "data:test", train.class_names)
    return dataset_of(f"{PREFIX}data", {TRAIN: train, "test": held_out})


def _open(data: Any, name: str, class_names: Sequence[str] | None) -> ObjectSource:
    if isinstance(data, tuple) and len(data) == 2:
        return _of_arrays(*data, name, class_names)
    if isinstance(data, Mapping):
        return _of_arrays(*_example(data, name), name, class_names)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _of_items(data, name, class_names)
    if isinstance(data, Iterable):
        images, labels = _read(data, name)
        return ObjectSource(name, images, read_labels(labels, name, class_names), fixed=True)
    raise UserError(
        f"{name}: is {type(data).__name__}; it must be (images, labels), an object with a length "
        "and items, an iterable of examples or batches, or a dataset's name."
    )


def _of_arrays(
    images: Any, labels: Any, name: str, class_names: Sequence[str] | None
) -> ObjectSource:
    """Returns the source of images and labels in two objects."""
    pixels = images if isinstance(images, list) else as_array(images, f"{name}: images")
    if isinstance(pixels, np.ndarray):
        if pixels.ndim not in (3, 4):
            raise UserError(
                f"{name}: images have shape {pixels.shape}; it must be (n, height, width) or (n, "
                "height, width, channels)."
            )
        check_range(pixels, f"{name}: images")
    read = read_labels(labels, name, class_names)
    if len(pixels) != len(read.labels):
        raise UserError(f"{name}: has {len(pixels):,} images and {len(read.labels):,} labels.")
    return ObjectSource(name, pixels, read, fixed=True)


def _of_items(data: Any, name: str, class_names: Sequence[str] | None) -> ObjectSource:
    """Returns the source of an object with items; each is read once, for its label."""
    if len(data) >= _ENDLESS:
        raise UserError(
            f"{name}: is endless; remove its repeat, because the run counts the epochs."
        )
    if class_names is None and isinstance(named := getattr(data, "classes", None), list | tuple):
        class_names = tuple(map(str, named))
    targets = getattr(data, "targets", None)
    plain = getattr(data, "target_transform", None) is None
    if plain and targets is not None and len(targets) == len(data):
        labels, places = list(targets), range(len(data))
        return ObjectSource(
            name, _Items(data, places, name), read_labels(labels, name, class_names), fixed=False
        )
    labels, kept = [], []
    for place in range(len(data)):
        item = data[place]
        if item is None:  # as Grain's filters leave it
            continue
        image, label = _example(item, f"{name}[{place}]")
        if _rank(image) == 4:
            images, labels = _read((data[i] for i in range(len(data))), name)
            return ObjectSource(name, images, read_labels(labels, name, class_names), fixed=True)
        check_image(image, f"{name}[{place}]")
        labels.append(label)
        kept.append(place)
    read = read_labels(labels, name, class_names)
    return ObjectSource(name, _Items(data, kept, name), read, fixed=False)


def _read(data: Iterable[Any], name: str) -> tuple[list[bytes], list[Any]]:
    """Reads examples or batches, encoded, into memory."""
    images: list[bytes] = []
    labels: list[Any] = []
    size = 0
    for number, item in enumerate(data):
        if item is None:
            continue
        for image, label in _examples(item, f"{name}[{number}]"):
            images.append(encode(image, f"{name}[{number}]"))
            labels.append(label)
            size += len(images[-1])
        if size > MOST_BYTES:
            raise UserError(
                f"{name}: has more than {MOST_BYTES / 1e9:g} GB, after {len(images):,} images, and "
                "may be endless; pass an object with a length and items instead."
            )
    return images, labels


def _examples(item: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Gives the examples of one, or of a batch of them."""
    image, label = _example(item, name)
    if _rank(image) != 4:
        yield image, label
        return
    labels = as_array(label, f"{name}: labels")
    if labels.ndim == 0 or len(labels) != len(image):
        given = len(labels) if labels.ndim else "no"
        raise UserError(f"{name}: a batch has {len(image):,} images and {given} labels.")
    yield from zip(image, labels, strict=True)


def _example(item: Any, name: str) -> tuple[Any, Any]:
    """Returns image and label of an example or a batch."""
    if isinstance(item, Mapping):
        found = [next((key for key in keys if key in item), None) for keys in (_IMAGES, _LABELS)]
        if None not in found:
            return item[found[0]], item[found[1]]
    elif isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    shown = (
        f"has the keys {', '.join(map(str, item))}"
        if isinstance(item, Mapping)
        else (f"is {type(item).__name__}")
    )
    raise UserError(
        f"{name}: {shown}; an example is (image, label), or a mapping with 'image' and 'label'."
    )


def _rank(image: Any) -> int:
    return len(getattr(image, "shape", ()))

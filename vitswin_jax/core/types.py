"""The data that passes between rooms; no JAX is imported here, for data workers use it too.

A datum's way, with shapes, dtypes and ranges:

    Record   image bytes, an encoded PNG or JPEG; label int in [0, k), or a tuple of such
      -> data.augment.transforms: decode, crop, flip, augment (numpy, on worker processes)
    Batch    image uint8 (b, h, w, 3) in [0, 255]; label int32 (b,), or float32 (b, k) of 0 and 1
             where images have several; mask float32 (b,), 0: padding
      -> rows over the mesh's axes slice, data and fsdp
      -> train.step: normalise to float32 with the run's mean and std, mix (soft targets (b, k))
      -> model: logits float32 (b, k) -> loss and metrics, weighted by the mask
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np

from vitswin_jax.core.terminal import printable

Params = Mapping[str, Any]
"""A tree of parameters: nested mappings from names to arrays."""

Shapes = Mapping[str, tuple[int, ...]]
"""Flat parameter names, joined by "/", to shapes: what a converter has to fill."""


Label = int | tuple[int, ...]
"""A class in [0, k); several, ascending, where a source is `multi_label`."""


class Record(TypedDict):
    """One example as it is stored: an encoded image and its class, or its classes."""

    image: bytes
    label: Label


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split; picklable, and safe to read from threads."""

    name: str
    """What messages call it, such as "digits:test"."""
    class_names: tuple[str, ...]
    multi_label: bool
    """Whether a label is a tuple of classes rather than one."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: SupportsIndex) -> Record:
        """Returns one record; raises UserError, which names it, where it cannot be read."""

    def label(self, index: int) -> Label:
        """Returns the label of a record, without reading its image where the files allow that."""

    def key(self, index: int) -> str:
        """Returns the name of a record in its dataset, wherever that is: a path, a number."""

    def describe(self, index: int) -> str:
        """Returns the name of a record in messages and reports: a path, "digits:test[12]"."""

    def facts(self, indices: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Returns the known facts about records, by column, without reading an image.

        Columns are some of `data.fingerprint.CHANGED`; "labels" has one `Label` for each record.
        The place of the dataset is in none of them.
        """


class Batch(TypedDict):
    """A batch as it leaves the data pipeline; numpy on the host, jax.Array once sharded."""

    image: np.ndarray  # uint8 (b, h, w, 3) in [0, 255]
    label: np.ndarray  # int32 (b,); float32 (b, k) of 0 and 1 from a multi_label source
    mask: np.ndarray  # float32 (b,): 1 for an example, 0 for padding
    local: NotRequired[np.ndarray]  # uint8 (b, n, h', w', c): small views; `image` has two (axis 1)


IMAGES = ("image", "local")
"""The keys of a batch that are pixels."""


class UserError(ValueError):
    """A mistake that the user can correct; commands print it as one line, without a traceback.

    It is a ValueError. The message names the thing, its value and what would be right. It is one
    printable line of at most `LINE` characters; the middle of a longer one is left out.

    >>> import vitswin_jax
    >>> try:
    ...     vitswin_jax.create_model("vit_tiny_patch16_22")
    ... except vitswin_jax.UserError as error:
    ...     print(error)
    no model is called 'vit_tiny_patch16_22'; did you mean 'vit_tiny_patch16_224'?
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_one_line(str(message)))


@contextlib.contextmanager
def naming(origin: object) -> Iterator[None]:
    """Puts `origin`, such as a file, before the message of a UserError of its block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


LINE = 1000
"""Characters of the longest message, half a screen of 24 lines."""


def _one_line(text: str) -> str:
    """Returns a text with escapes for what cannot be printed, without the middle if it is long."""
    text = printable(text)
    if len(text) <= LINE:
        return text
    return f"{text[: LINE * 2 // 3]} ... {text[5 - LINE // 3 :]}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Returns a count with its noun.

    >>> counted(1, "class", "classes"), counted(1200, "image")
    ('1 class', '1,200 images')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Returns names as a message has them: the first few, shortened, and how many there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b, ... (3 in all)'
    """
    names = list(names)
    shown = [name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}" for name in names[:most]]
    return ", ".join([*shown, f"... ({len(names)} in all)"] if len(names) > most else shown)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known word, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def with_tuples(value: Any) -> Any:
    """Returns lists, as configs and JSON have them, as the tuples that a model's fields are."""
    if isinstance(value, Mapping):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list | tuple) else value

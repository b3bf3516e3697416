"""Small images: decoded once in a run, and loaded by one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import Any

import numpy as np

from vitswin_jax.core.types import Source
from vitswin_jax.data.decode import decode_image, jpeg_size

SIDE = 64
EACH = SIDE * SIDE * 3
"""The most bytes of pixels that a small image has, and the most that its file has."""

AT_MOST = 512 << 20
"""The most bytes of pixels that the processes of a host keep of a split."""


class SmallImages:
    """The records of a source; small images come as pixels, which are kept.

    To decode a PNG of 28 x 28 pixels takes more time than its augmentation, so its pixels are kept
    from the first epoch on, up to AT_MOST bytes in all `processes`. A JPEG is small by its header:
    other files stay encoded, since a crop may decode them reduced (`crop.cut_and_resize`). What an
    image looks like never depends on whether it is kept.

    While images are small, `turn` lets in one thread at a time. Python's lock is held for nearly
    all of their work, and two threads that contend for it take 2.6 times the CPU time of one
    (Fashion-MNIST; benchmarks/input.py measures it).
    """

    def __init__(self, source: Source, channels: int, *, processes: int = 1) -> None:
        self.source = source
        self.channels = channels
        self.processes = processes
        self._kept: dict[int, Any] = {}
        self._left = AT_MOST // processes
        self._small = False
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles what a worker process needs; it decodes and keeps its own images."""
        return partial(SmallImages, processes=self.processes), (self.source, self.channels)

    def turn(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which a thread loads a batch."""
        return self._turn if self._small else contextlib.nullcontext()

    def load(self, index: int) -> Any:
        """Returns a record, whose image is encoded or, if it is small, uint8 (h, w, c).

        Raises UserError, which names the record, if it cannot be read or decoded.
        """
        kept = self._kept.get(index)
        record = self.source[index] if kept is None else kept
        self._small = kept is not None or self._is_small(record["image"])
        if kept is not None or not self._small:
            return record
        name = self.source.describe(index)
        pixels = decode_image(record["image"], name=name, channels=self.channels)
        pixels.flags.writeable = False
        record = {**record, "image": pixels}
        if pixels.nbytes <= min(EACH, self._left):
            self._left -= pixels.nbytes
            self._kept[index] = record
        return record

    def _is_small(self, image: bytes | np.ndarray) -> bool:
        if not isinstance(image, bytes) or len(image) > EACH:
            return False
        size = jpeg_size(image)
        return size is None or size[0] * size[1] * self.channels <= EACH

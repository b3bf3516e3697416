"""Small images: decoded once in a run, and loaded by one thread."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitswin_jax.core.types import Source, UserError
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
    a larger one stays encoded, since a crop may decode it reduced (`crop.cut_and_resize`), and a
    small one is decoded in full whether it is kept or not.
    """

    def __init__(self, source: Source, channels: int, *, processes: int = 1) -> None:
        self.source = source
        self.channels = channels
        self._kept: dict[int, Any] = {}
        self._left = AT_MOST // processes

    def threads(self) -> int | None:
        """Returns 1 if images are small: the first, the one in the middle and the last; else None.

        Python runs one thread at a time, and all work on a small image is Python's. Two threads
        take twice the CPU time of one (benchmarks/small_images.py).
        """
        last = len(self.source) - 1
        try:
            images = [self.source[index]["image"] for index in (0, last // 2, last)]
        except UserError:  # which the run reports, or skips, in its turn
            return None
        return 1 if all(map(self._is_small, images)) else None

    def load(self, index: int) -> Any:
        """Returns a record, whose image is encoded or, if it is small, uint8 (h, w, c).

        Raises UserError, which names the record, if it cannot be read or decoded.
        """
        if index in self._kept:
            return self._kept[index]
        record: Any = self.source[index]
        if not self._is_small(record["image"]):
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

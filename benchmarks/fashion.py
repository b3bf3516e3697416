"""Fashion-MNIST from its four .gz files (Debian: dataset-fashion-mnist), for other scripts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28
SPLITS = {"train": "train", "test": "t10k"}
"""The first part of the files' names, by split."""


def read_split(source: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of a split, uint8 (n, 28, 28), and their labels, (n,)."""
    name = SPLITS[split]
    images, labels = (
        np.frombuffer(gzip.decompress((source / f"{name}-{part}-ubyte.gz").read_bytes()), "u1")
        for part in ("images-idx3", "labels-idx1")
    )
    return images[16:].reshape(-1, SIDE, SIDE), labels[8:]

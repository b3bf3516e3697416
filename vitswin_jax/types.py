"""The data that passes between rooms; no JAX is imported here, for data workers use it too.

A datum's way, with shapes, dtypes and ranges:

    Record   image bytes, an encoded PNG or JPEG; label int in [0, k)
      -> data.transforms: decode, crop, flip, augment (numpy, on worker processes)
    Batch    image uint8 (b, h, w, 3) in [0, 255]; label int32 (b,); mask float32 (b,), 0: padding
      -> sharded over the data axis of the mesh
      -> train.steps: normalise to float32 with the run's mean and std, mix (soft targets (b, k))
      -> model: logits float32 (b, k) -> loss and metrics, weighted by the mask
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

Params = Mapping[str, Any]
"""A tree of parameters: nested mappings from names to arrays."""

Shapes = Mapping[str, tuple[int, ...]]
"""Flat parameter names, joined by "/", to shapes: what a converter has to fill."""


class Record(TypedDict):
    """One example as it is stored: an encoded image and its class."""

    image: bytes
    label: int


class Batch(TypedDict):
    """A batch as it leaves the data pipeline; numpy on the host, jax.Array once sharded."""

    image: np.ndarray  # uint8 (b, h, w, 3) in [0, 255]
    label: np.ndarray  # int32 (b,)
    mask: np.ndarray  # float32 (b,): 1 for an example, 0 for padding


class UserError(ValueError):
    """A mistake the user can mend: commands print it as one line, without a traceback."""

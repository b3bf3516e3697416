"""The pixels of an image in memory, as an encoded image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from vitswin_jax.core.types import UserError

_CHANNELS = (1, 3, 4)  # which axis has the channels is decided by these
_MODES = ("L", "RGB", "RGBA")


def encode(image: Any, name: str) -> bytes:
    """Returns an image as a PNG, or an .npy file of other channels, of the same levels.

    Bytes, which are encoded, stay as they are. A PIL image's fourth channel is transparency, and
    an array's is not. Raises UserError, which begins with `name`, for another shape, type or range.
    """
    if isinstance(image, bytes):
        return image
    of_a_png = (1, 3, 4) if isinstance(image, Image.Image) else (1, 3)
    file, levels = io.BytesIO(), _levels(_checked(image, name))
    if levels.shape[2] not in of_a_png:
        np.save(file, levels)
        return file.getvalue()
    Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(
        file, "PNG", compress_level=0
    )
    return file.getvalue()


def check_image(image: Any, name: str) -> None:
    """Raises UserError, which begins with `name`, for an image that `encode` refuses."""
    if not isinstance(image, bytes):
        _checked(image, name)


def as_array(value: Any, name: str) -> np.ndarray:
    """Returns an object as an array; raises UserError where it cannot be one."""
    try:
        return np.asarray(value)
    except Exception as error:  # PyTorch's tensors on a GPU, lists of unequal shapes
        raise UserError(f"{name}: cannot be read as an array; pass NumPy arrays.") from error


def _checked(image: Any, name: str) -> np.ndarray:
    """Returns the pixels (h, w, c) of an image, of a shape, type and range that are checked."""
    if isinstance(image, Image.Image) and image.mode not in _MODES:
        image = image.convert("RGB")
    pixels = as_array(image, name)
    check_range(pixels, name)
    return _channels_last(pixels, name)


def check_range(pixels: np.ndarray, name: str) -> None:
    """Raises UserError unless pixels are whole numbers in [0, 255] or fractions in [0, 1]."""
    kind = pixels.dtype.kind
    if pixels.dtype == np.uint8:
        return
    if kind not in "uif":
        raise UserError(f"{name}: has dtype {pixels.dtype}; it must be uint8, or float in [0, 1].")
    if not pixels.size:
        return
    low, high = pixels.min(), pixels.max()
    most = 1 if kind == "f" else 255
    if not (low >= 0 and high <= most):  # NaN is neither
        raise UserError(
            f"{name}: is {pixels.dtype} from {low:.4g} to {high:.4g}; it must be uint8 in [0, 255] "
            "or float in [0, 1]: the run normalises images by the model's own mean and std."
        )


def _levels(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels.astype(np.float32) * 255)
    return pixels.astype(np.uint8)


def _channels_last(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise UserError(
            f"{name}: has shape {pixels.shape}; an image is (height, width), (height, width, "
            "channels) or (channels, height, width)."
        )
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[-1] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        return np.moveaxis(pixels, 0, -1)
    return pixels

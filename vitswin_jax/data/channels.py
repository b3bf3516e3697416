"""Images of any number of channels: arrays in files, bands of pictures, and how to show them.

The model's channels (`in_chans`) decide what a file gives:

- 3: red, green and blue. Grey is repeated, and transparent pixels lie on white.
- 1: the luminance of that (ITU-R 601-2), so that a grey image is its own.
- any other number: the bands of the file, which must be as many: grey and alpha are 2, colours and
  alpha 4, and an array (height, width, channels) in an .npy file has any number.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitswin_jax.core.types import UserError

ARRAY_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_BANDS = {2: ("LA",), 4: ("RGBA", "RGBX")}
"""Channels -> the modes of Pillow that have them, each a band of its own."""
_SAMPLES = 277  # SamplesPerPixel of TIFF; Pillow drops what its modes have not
_SAVE = "np.save an array (height, width, channels), uint8 or uint16, as FILE.npy"


def is_array(data: bytes) -> bool:
    """Returns whether a file's content is NumPy's format."""
    return data.startswith(_MAGIC)


def read_array(
    data: bytes, *, channels: int | None, at_most: int, name: str
) -> UInt8[np.ndarray, "h w c"]:
    """Returns the image in an .npy file; `at_most` is in bytes, `channels` None takes any number.

    Levels of uint16 become 8 bits by the range of their type, as those of a 16-bit PNG do. Raises
    UserError, which begins with `name`, for another dtype or shape, and for a damaged file.
    """
    try:
        header = _header(data)
    except Exception as error:  # NumPy's parser raises exceptions of several kinds
        raise UserError(f"{name}: the array is damaged: its header cannot be read.") from error
    shape, dtype = header
    if len(shape) not in (2, 3) or dtype.name not in ("uint8", "uint16"):
        raise UserError(
            f"{name}: has shape {shape} and dtype {dtype.name}; an image is (height, width) or "
            "(height, width, channels) of uint8, or of uint16 from 0 to 65,535."
        )
    size = math.prod(shape) * dtype.itemsize
    if size > at_most:
        raise UserError(f"{name}: has {size:,} bytes of pixels; at most {at_most:,} are read.")
    try:
        image = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise UserError(
            f"{name}: the array is damaged: cut short ({len(data):,} bytes); copy it again."
        ) from error
    if not image.size:
        raise UserError(f"{name}: has shape {shape} and no pixels.")
    if image.dtype != np.uint8:
        image = ((image.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)
    image = image.reshape(*image.shape[:2], -1)
    return np.ascontiguousarray(image if channels is None else _as_asked(image, channels, name))


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(file)
    return shape, dtype.newbyteorder("=")


def _as_asked(image: np.ndarray, channels: int, name: str) -> np.ndarray:
    given = image.shape[2]
    if given == channels:
        return image
    if (given, channels) == (1, 3):
        return np.repeat(image, 3, axis=2)
    if (given, channels) == (3, 1):
        return luminance(image)
    raise UserError(wrong_channels(name, given, channels))


def bands_of(image: Image.Image, channels: int, *, name: str) -> np.ndarray:
    """Returns the bands of a picture that is loaded, of other numbers than 1 and 3, as they are.

    Raises UserError where the file has another number, or Pillow gives it less than the file has.
    """
    tags: Any = getattr(image, "tag_v2", {})  # of Pillow's TIFF images
    given = int(tags.get(_SAMPLES, len(image.getbands())))
    if image.mode == "P" and image.has_transparency_data:
        image, given = image.convert("RGBA"), 4
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if given != channels:
        raise UserError(wrong_channels(name, given, channels))
    if image.mode not in _BANDS.get(channels, ()):
        raise UserError(
            f"{name}: has {given} bands ({image.format}, {image.mode}), which are not read from "
            f"this format; {_SAVE}."
        )
    return np.asarray(image)


def wrong_channels(name: str, given: int, channels: int) -> str:
    """Returns the line about an image of other channels than the model's."""
    return (
        f"{name}: has {given} channel{'s' if given > 1 else ''}, and the model takes {channels} "
        f"(model.in_chans); 1 and 3 become each other, and other numbers must be equal."
    )


def luminance(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 1"]:
    """Returns the luminance (ITU-R 601-2) of red, green and blue, as Pillow rounds it."""
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def as_rgb(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image to show: its first three channels, or else its first as grey."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def band_by_band(
    function: Callable[[np.ndarray], np.ndarray], image: UInt8[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "H W c"]:
    """Applies a function of (h, w, 3) or (h, w) to an image: at once to colours, else to each band.

    Pillow would weight the bands of four by the last, and OpenCV has at most four in places.
    """
    if image.shape[2] == 3:
        return function(image)
    return np.stack([function(cv2.extractChannel(image, i)) for i in range(image.shape[2])], -1)

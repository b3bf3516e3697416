"""Encoded images to pixels: JPEG by simplejpeg, everything else by Pillow."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, features

from vitswin_jax.core.types import UserError

MAX_PIXELS = 89_478_485
"""The largest image that is decoded: Pillow's own limit, a quarter gigabyte of RGB."""

_AVIF = ("AVIF",) if features.modules.get("avif") and features.check("avif") else ()  # Pillow 11.3
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", *_AVIF)
"""The formats that are decoded. Pillow's others stay shut: its EPS reader starts Ghostscript."""

_TRANSPOSES = {  # EXIF orientation to what undoes it, as quarter turns and a mirror
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns the (height, width) in the header of a JPEG that can be decoded reduced.

    None for every other file: no JPEG, one to be turned upright, in CMYK, too large or damaged.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace in ("CMYK", "YCCK") or width * height > MAX_PIXELS or _orientation(data) != 1:
        return None
    return height, width


def decode_image(
    data: bytes, *, name: str = "image", reduction: int = 1
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an encoded image, uint8 RGB in [0, 255].

    The content selects the decoder, among those of FORMATS; a file's suffix does not matter.
    Grey becomes RGB, transparent pixels lie on white, 16 bits become 8 by scaling, the first
    frame of several is taken, and the EXIF orientation turns the image upright.

    A JPEG that has a `jpeg_size` may be decoded 2, 4 or 8 times smaller each way (`reduction`; a
    part of a pixel counts as one), which is faster: its blocks' high frequencies are left out.
    A damaged one that only Pillow can read comes in full all the same.

    Raises UserError, which begins with `name`, if `data` is empty, truncated, not an image of
    FORMATS, or larger than MAX_PIXELS.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes); an image was expected.")
    image = _decode_jpeg(data, name=name, reduction=reduction)
    return _decode_with_pillow(data, name=name) if image is None else image


def _decode_jpeg(data: bytes, *, name: str, reduction: int) -> np.ndarray | None:
    """Decodes the JPEGs that simplejpeg can, bit for bit as Pillow does but faster."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace in ("CMYK", "YCCK"):
            return None
        _check_size(width, height, name=name)
        image = simplejpeg.decode_jpeg(  # strict: a damaged file raises
            data,
            "RGB",
            min_height=-(-height // reduction),
            min_width=-(-width // reduction),
            min_factor=reduction,
        )
    except UserError:
        raise
    except ValueError:
        return None  # Pillow knows which damage can be lived with, and what to call the rest
    turns, mirror = _TRANSPOSES.get(_orientation(data), (0, False))
    return np.ascontiguousarray(np.rot90(image, turns)[:, :: -1 if mirror else 1])


def _orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 (upright) where it has none to be read."""
    if not _has_exif(data):
        return 1
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1)


def _has_exif(data: bytes) -> bool:
    """Returns whether a segment before a JPEG's first scan is EXIF (CIPA DC-008, 4.5.4)."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        if data[at + 1 : at + 2] == b"\xe1" and data[at + 4 : at + 10] == b"Exif\x00\x00":
            return True
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return False


def _decode_with_pillow(data: bytes, *, name: str) -> np.ndarray:
    try:
        # JPEG includes MPO, the several photographs of a phone: Pillow's JPEG reader opens them.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, name=name)
            return np.array(_to_rgb(ImageOps.exif_transpose(image), name=name))
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: {error}; at most {MAX_PIXELS:,} pixels are read.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{name}: not an image that can be read ({len(data):,} bytes, starting with "
            f"{data[:8]!r}); {', '.join(FORMATS[:-1])} or {FORMATS[-1]} was expected."
        ) from error
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError) as error:
        raise UserError(f"{name}: the image is damaged: {error}.") from error


def _to_rgb(image: Image.Image, *, name: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(f"{name}: holds floating-point pixels of unknown range; save it as 8 bit.")
    if image.mode.startswith("I"):  # 16 bit grey; `convert` would clip it at 255
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(np.round(levels / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _check_size(width: int, height: int, *, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width}x{height} is {width * height:,} pixels; at most {MAX_PIXELS:,} "
            "are read."
        )

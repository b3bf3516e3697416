"""Encoded images to pixels: JPEG by simplejpeg, everything else by Pillow."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image

from vitswin_jax.core.types import UserError
from vitswin_jax.data.channels import bands_of, is_array, luminance, read_array
from vitswin_jax.data.damage import check_chunks, check_rows, check_scans, check_strips, segments
from vitswin_jax.data.formats import FORMATS, INSTALL, quiet_decoders
from vitswin_jax.data.levels import check_high_bytes, rgb_of, upright_of

MAX_PIXELS = 89_478_485
"""The largest image that is decoded: Pillow's own limit, a quarter gigabyte of RGB."""

MAX_BYTES = 1_000_000_000
"""The most memory that decoding may take, with what it returns and without the file."""

_HELD = {"": 11, "CMYK": 12, "TIFF": 8, "WEBP": 18, "AVIF": 20, "HEIF": 20}
"""Bytes that a format's decoder holds for a pixel at most, as measured; "" is any other format,
CMYK a JPEG's, and a TIFF holds a strip, which may be all of its pixels, besides."""

_BITS, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH = 258, 277, 322, 323  # tags of TIFF

_JPEG, _INKS = b"\xff\xd8", ("CMYK", "YCCK")
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIF"
)
"""What a file of ISO's container says it is, in bytes 8 to 12, and its format."""

_UNFINISHED = re.compile("premature end|bad huffman code|inconsistent progression", re.IGNORECASE)
"""What libjpeg says of a JPEG whose pixels are wrong; it can live with other damage."""

quiet_decoders()


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns the (height, width) in the header of a JPEG that can be decoded reduced.

    None for every other file: no JPEG, one to be turned upright, in CMYK, too large or damaged.
    """
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace in _INKS or width * height > MAX_PIXELS:
        return None
    return (height, width) if _jpeg_orientation(data) == 1 else None


def decode_image(
    data: bytes, *, name: str = "image", reduction: int = 1, channels: int | None = 3
) -> UInt8[np.ndarray, "h w c"]:
    """Returns the pixels of an encoded image, uint8 in [0, 255]: RGB, or of other `channels`.

    The content selects the decoder, among those of FORMATS and NumPy's; a file's suffix does not
    matter. `data.channels` says what a file gives for a number of channels; None takes arrays as
    they are. More than 8 bits become 8 by their range (`data.levels`), the first frame of several
    is taken, and the EXIF orientation turns the image upright; EXIF that is damaged is passed over.

    A JPEG that has a `jpeg_size` may be decoded 2, 4 or 8 times smaller each way (`reduction`; a
    part of a pixel counts as one), which is faster: its blocks' high frequencies are left out.
    A damaged one that only Pillow can read comes in full all the same.

    Raises UserError, which begins with `name`, if `data` is empty, cut short, damaged, not an image
    of FORMATS, larger than MAX_PIXELS, would take more than MAX_BYTES, or has other channels.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes); an image was expected.")
    try:
        if is_array(data):
            return read_array(data, channels=channels, at_most=MAX_BYTES // 2, name=name)
        if channels not in (None, 1, 3):
            return _decode_with_pillow(data, name=name, bands=channels)
        image = _decode_jpeg(data, name=name, reduction=reduction)
        image = _decode_with_pillow(data, name=name) if image is None else image
        return luminance(image) if channels == 1 else image
    except MemoryError as error:
        raise UserError(f"{name}: there is not enough memory to decode it.") from error


def _decode_jpeg(data: bytes, *, name: str, reduction: int) -> np.ndarray | None:
    """Decodes the JPEGs that simplejpeg can, bit for bit as Pillow does but faster."""
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        colours = "CMYK" if colorspace in _INKS else "RGB"
        reduction = 1 if colorspace in _INKS else reduction
        _check_size(width, height, _HELD["CMYK" if colorspace in _INKS else ""], name=name)
        check_scans(data, width, height, name=name)
        image = simplejpeg.decode_jpeg(  # strict: a damaged file raises
            data,
            colours,
            min_height=-(-height // reduction),
            min_width=-(-width // reduction),
            min_factor=reduction,
        )
    except UserError:
        raise
    except ValueError as error:
        if _UNFINISHED.search(str(error)):
            raise UserError(_damaged(name, "JPEG", data)) from error
        return None  # Pillow knows which damage can be lived with
    if colours == "CMYK":
        np.subtract(255, image, out=image)  # Adobe writes them so, and Pillow reads all so
        return rgb_of(
            Image.fromarray(image, "CMYK"), orientation=_jpeg_orientation(data), name=name
        )
    return upright_of(image, orientation=_jpeg_orientation(data))


def _jpeg_orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 (upright) where it has none to be read."""
    if not _has_exif(data):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _orientation(image)
    except Exception:  # damaged, which its decoder is to say
        return 1


def _has_exif(data: bytes) -> bool:
    """Returns whether a segment before a JPEG's first scan is EXIF (CIPA DC-008, 4.5.4)."""
    return any(
        marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0" for marker, at in segments(data)
    )


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image, 1 (upright) where it has none to be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parsers raise exceptions of every kind on damaged EXIF
        return 1
    return orientation if isinstance(orientation, int) else 1


def _decode_with_pillow(data: bytes, *, name: str, bands: int | None = None) -> np.ndarray:
    """Decodes an image to RGB, or to its own `bands`."""
    kind = "image"
    try:
        # JPEG includes MPO, the several photographs of a phone: Pillow's JPEG reader opens them.
        image = _opened(data)
        kind = image.format or kind
        _check_image(image, name=name)
        if kind in ("JPEG", "MPO"):
            check_scans(data, *image.size, name=name)
        elif kind == "PNG":
            check_chunks(data, name=name)
        elif kind == "TIFF":
            check_strips(image, name=name)
        image.load()
        orientation = _orientation(image)
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: is too large; at most {MAX_PIXELS:,} pixels are read.") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(_unknown(name, data)) from error
    except Exception as error:  # Pillow's decoders raise exceptions of every kind on damaged files
        raise UserError(_damaged(name, kind, data)) from error
    if kind == "PNG":
        check_rows(image, data, name=name)
    if bands is None:
        return rgb_of(image, orientation=orientation, name=name)
    if kind == "TIFF":
        check_high_bytes(image, name)
    return upright_of(bands_of(image, bands, name=name), orientation=orientation)


def _opened(data: bytes) -> Image.Image:
    """Returns an image whose header is read."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:
        # Pillow opens no AVIF whose EXIF is damaged: an item of another kind is not read.
        plain = re.sub(rb"(infe[\2\3].{7,9})Exif", rb"\1skip", data, flags=re.DOTALL)
        if data[8:12] not in _BRANDS or plain == data:
            raise
        return Image.open(io.BytesIO(plain), formats=FORMATS)


def _damaged(name: str, kind: str, data: bytes) -> str:
    size = f"{len(data):,} bytes"
    return f"{name}: the image is damaged: cut short or changed ({kind}, {size}); copy it again."


def _unknown(name: str, data: bytes) -> str:
    kind = _BRANDS.get(data[8:12], "") if data[4:8] == b"ftyp" else ""
    if kind in INSTALL and kind not in FORMATS:
        return f"{name}: is {kind}, which is not read here; {INSTALL[kind]} makes it so."
    return (
        f"{name}: not an image that can be read ({len(data):,} bytes, starting with "
        f"{data[:8]!r}); {', '.join(FORMATS[:-1])} or {FORMATS[-1]} was expected."
    )


def _check_image(image: Image.Image, *, name: str) -> None:
    """Raises UserError for an image whose header says that decoding takes more than MAX_BYTES."""
    kind = "CMYK" if image.mode == "CMYK" else image.format or ""
    held = _HELD.get(kind, _HELD[""])
    width, height = image.size
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]  # of Pillow's TIFF images
        bits = tags.get(_BITS, (1,))
        held += -(-max(bits) * max(len(bits), tags.get(_SAMPLES, 1)) // 8)  # of a strip
        _check_size(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1), held, name=name)
    _check_size(width, height, held, name=name)


def _check_size(width: int, height: int, held: int, *, name: str) -> None:
    most = min(MAX_PIXELS, MAX_BYTES // held)
    if width * height > most:
        raise UserError(
            f"{name}: has {width}x{height}={width * height:,} pixels; at most {most:,} pixels are "
            "read."
        )

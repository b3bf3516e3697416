"""Image formats that are read, the suffixes of their files, and quiet decoders."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import warnings

from PIL import Image, features

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
"""Format, by its name in Pillow -> what its files end in."""

INSTALL = {
    "AVIF": "`pip install 'pillow>=11.3'`",
    "HEIF": "`pip install pillow-heif`",
}
"""Formats that not every installation reads, and what makes it read them."""


def _readable() -> tuple[str, ...]:
    """Returns the formats that this installation reads; registers what pillow-heif reads."""
    missing = {"AVIF", "HEIF"}
    if features.modules.get("avif") and features.check("avif"):
        missing.remove("AVIF")
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if "HEIF" in Image.OPEN:
        missing.remove("HEIF")
    return tuple(name for name in SUFFIXES if name not in missing)


FORMATS = _readable()
"""The formats that are decoded. Pillow's others stay shut: its EPS reader starts Ghostscript."""


def quiet_decoders() -> None:
    """Has Pillow and libtiff print nothing of a file in this process; we report what is wrong.

    Pillow has no switch for libtiff's lines, so libtiff's handlers are taken away, once. Where
    libtiff is linked into Pillow without names, as on Windows, it prints.
    """
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(Image.core.__file__)  # and the libraries it is linked to
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            setter(None)

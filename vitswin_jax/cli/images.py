"""Images that a command's arguments name: files, folders, patterns, addresses, standard input."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.sources.files import (
    IMAGE_SUFFIXES,
    file_paths,
    images_among,
    is_file,
    is_folder,
    join,
    note_unread,
    read_file,
)
from vitswin_jax.data.sources.patterns import expand
from vitswin_jax.weights.download import read_address

STDIN = "-"
LARGEST_FILE = 64 << 20
"""Bytes that are taken from an address: no image of decode.MAX_PIXELS is as large, compressed."""


def find_images(arguments: Iterable[str]) -> list[str | UserError]:
    """Returns the images that arguments name, in order, or for one without images the error.

    A folder stands for all images in it, at any depth; a pattern with `*`, `?`, `[...]` or braces,
    which a shell did not expand, for the files and folders that match (`**`: at any depth). "-" is
    an image on standard input. Whether a single file or address is there shows when it is read.
    """
    found: list[str | UserError] = []
    for argument in arguments:
        try:
            found += _images_of(argument)
        except UserError as error:
            found.append(error)
    return found


def read_image(name: str, *, channels: int = 3) -> np.ndarray:
    """Returns the pixels, uint8 (h, w, channels) in [0, 255], of an image `find_images` named.

    Raises UserError, which begins with the name, where it cannot be had or is no image.
    """
    return decode_image(_bytes_of(name), name=name, channels=channels)


def _images_of(argument: str) -> list[str]:
    if argument == STDIN or _is_address(argument) or is_file(argument):
        return [argument]
    if is_folder(argument):
        return _images_in(argument)
    if not re.search(r"[*?\[{]", argument):
        return [argument]
    matches = expand(argument)
    return [
        image for path in matches for image in (_images_in(path) if is_folder(path) else [path])
    ]


def _images_in(folder: str) -> list[str]:
    paths = file_paths(folder, deep=True)
    note_unread(folder, paths)
    found = [join(folder, path) for path in images_among(paths)]
    if not found:
        raise UserError(
            f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder."
        )
    return found


def _bytes_of(name: str) -> bytes:
    if name == STDIN:
        return sys.stdin.buffer.read()
    if _is_address(name):
        return read_address(name, at_most=LARGEST_FILE)
    return read_file(name)


def _is_address(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))

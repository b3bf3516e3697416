"""Contact sheets: many small pictures with two lines below each, as one PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.terminal import printable
from vitswin_jax.report import fonts

AT_MOST = 1000
"""Pictures on a sheet: more make a file that viewers do not open."""

_SIDE, _GAP, _COLUMNS = 160, 12, 8  # pixels; pictures a row
_LINE, _TEXT = 16, 12  # pixels: of a line of text, of its letters
_INKS = ("#1f2933", "#616e7c")


@dataclass(frozen=True)
class Picture:
    """One picture of a sheet, a `thumbnail`, and what stands below it."""

    image: UInt8[np.ndarray, "h w 3"]
    lines: tuple[str, str]


def thumbnail(image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image, uint8 RGB in [0, 255], in the size in which a sheet shows it.

    A smaller one is enlarged, with its pixels to be seen.
    """
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, resampling))


def write_sheet(path: str | os.PathLike[str], pictures: Sequence[Picture]) -> Path:
    """Writes pictures in rows, in their order, as a PNG; returns `path`.

    Text that is too long ends in an ellipsis. Raises UserError where the file cannot be written.
    """
    columns = min(len(pictures), _COLUMNS)
    rows = math.ceil(len(pictures) / columns)
    cell = _SIDE + _GAP, _SIDE + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        left, top = _GAP + i % columns * cell[0], _GAP + i // columns * cell[1]
        height, width = picture.image.shape[:2]
        place = left + (_SIDE - width) // 2, top + (_SIDE - height) // 2
        sheet.paste(Image.fromarray(picture.image), place)
        for n, (line, ink) in enumerate(zip(picture.lines, _INKS, strict=True)):
            text, font = _fitted(printable(line))
            draw.text((left, top + _SIDE + 2 + n * _LINE), text, fill=ink, font=font)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
    return Path(path)


def _fitted(line: str) -> tuple[str, ImageFont.FreeTypeFont]:
    """Returns a line as far as it fits below a picture, and a font that has its letters."""
    font = ImageFont.truetype(fonts.font_of(line), _TEXT)
    text = fonts.drawable(line)
    if font.getlength(text) <= _SIDE:
        return text, font
    return next(cut for cut in _shortened(text) if font.getlength(cut) <= _SIDE), font


def _shortened(line: str) -> Iterable[str]:
    return (line[:n].rstrip() + "…" for n in range(len(line) - 1, -1, -1))

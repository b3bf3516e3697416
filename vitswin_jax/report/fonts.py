"""Fonts for names in pictures: one that has a text's letters, or escapes of those that none has.

Matplotlib's own font has Latin, Greek, Cyrillic, Arabic and Hebrew letters. Chinese, Japanese and
Korean ones are drawn with a font of the system.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from vitswin_jax.core.terminal import logger

log = logger(__name__)

_OWN = os.path.join("fonts", "ttf", "DejaVuSans.ttf")  # noqa: PTH118, below Matplotlib's data
_LIKED = ("noto", "sourcehan", "wqy", "pingfang", "hiragino", "yahei", "malgun", "gothic", "cjk")
"""Parts of the names of fonts for text, which are tried before others."""


@functools.cache
def font_of(text: str) -> str:
    """Returns the file of the font that has most letters of a text: Matplotlib's own if it can."""
    own = str(Path(matplotlib.get_data_path()) / _OWN)
    wanted = frozenset(map(ord, text))
    if wanted <= _letters(own):
        return own
    best = max((own, *_of_system()), key=lambda font: len(wanted & _letters(font)))
    if not wanted <= _letters(best):
        _say_missing()
    return best


def drawable(text: str) -> str:
    """Returns a text with U+XXXX in the place of a letter that its font lacks."""
    letters = _letters(font_of(text))
    return "".join(c if ord(c) in letters else f"U+{ord(c):04X}" for c in text)


@functools.cache
def _of_system() -> tuple[str, ...]:
    """Returns the system's font files, those for text in Asian scripts first."""

    def place(file: str) -> tuple[bool, str]:
        name = Path(file).name.lower()
        return not any(part in name for part in _LIKED), file

    return tuple(sorted(font_manager.findSystemFonts(), key=place))


@functools.cache
def _letters(font: str) -> frozenset[int]:
    """Returns the letters that a font file has; none of a file that cannot be read."""
    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.cache
def _say_missing() -> None:
    log.warning(
        "pictures: no font of this system has all letters of the names, which show U+XXXX instead; "
        "install one, such as Noto Sans CJK (Debian: fonts-noto-cjk)."
    )

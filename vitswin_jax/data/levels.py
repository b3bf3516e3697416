"""Pixels that Pillow has read, of any mode and range, as upright 8-bit RGB.

Levels of more than 8 bits become 8 by the range that the file states, or else that of their type:

- 16-bit PNG: 0 to 65,535, as its standard says.
- TIFF: from MinSampleValue (tag 280, or SMinSampleValue, 340) to MaxSampleValue (281, or
  SMaxSampleValue, 341). Without them: unsigned integers of b bits from 0 to 2^b - 1, and signed
  ones from 0 to 2^(b - 1) - 1.

No range is taken from the extremes of a picture, which would make a dark one bright. A picture
that does not fit its range, or whose range nothing states, is refused: floating-point pixels
without tags; levels outside the range; and 16 or 32 bits without tags of which a picture uses less
than a sixteenth, for the file may hold fewer bits, such as 12 in 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from vitswin_jax.core.types import UserError

TRANSPOSES = {  # EXIF orientation to what undoes it, as quarter turns and a mirror
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}

_BAND = 1 << 22  # pixels that are converted at a time, so that no copy of a whole image is made
_UNUSED = 16  # a range is doubted if a picture uses less than 1 of so many parts of it

_BITS, _WHITE_IS_ZERO, _FORMAT = 258, 262, 339  # BitsPerSample, PhotometricInterpretation == 0
_LOW, _HIGH = (340, 280), (341, 281)
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # of SampleFormat


def rgb_of(image: Image.Image, *, orientation: int, name: str) -> np.ndarray:
    """Returns the pixels of an image that is loaded, uint8 (h, w, 3), turned upright.

    Transparent pixels lie on white. Raises UserError, which begins with `name`, for pixels whose
    range is not known.
    """
    (width, height), (turns, mirror) = image.size, TRANSPOSES.get(orientation, (0, False))
    upright = np.empty((width, height, 3) if turns % 2 else (height, width, 3), np.uint8)
    pixels = np.rot90(upright[:, :: -1 if mirror else 1], -turns)
    deep = _levels_of(image, name) if image.mode.startswith(("I", "F")) else None
    convert: Callable[[Image.Image], np.ndarray] = deep or _shallow
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        pixels[top : top + rows] = convert(image.crop(box) if rows < height else image)
    if deep:
        deep.check(name)
    elif image.format == "TIFF":
        check_high_bytes(image, name)
    return upright


def upright_of(image: np.ndarray, *, orientation: int) -> np.ndarray:
    """Returns decoded pixels, of any channels, turned upright."""
    turns, mirror = TRANSPOSES.get(orientation, (0, False))
    return np.ascontiguousarray(np.rot90(image, turns)[:, :: -1 if mirror else 1])


def _shallow(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


@dataclass
class _Levels:
    """Grey levels of more than 8 bits: their range, and the extremes that were met."""

    low: float
    high: float
    stated: bool
    dtype: np.dtype | None = None  # that of the file, where Pillow has another
    white_is_zero: bool = False
    transparent: int | None = None
    extremes: list[float] = field(default_factory=list)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Returns a part of the image as uint8 (h, w, 3)."""
        levels = np.asarray(image)
        levels = levels if self.dtype is None else levels.view(self.dtype)
        self.extremes += [float(levels.min()), float(levels.max())]
        with np.errstate(invalid="ignore"):  # `check` refuses what is no number
            scaled = np.round((levels - self.low) / ((self.high - self.low) / 255))
            grey = np.clip(scaled, 0, 255).astype(np.uint8)
        grey = 255 - grey if self.white_is_zero else grey
        if self.transparent is not None:
            grey = np.where(levels == self.transparent, np.uint8(255), grey)
        return np.repeat(grey[..., None], 3, axis=2)

    def check(self, name: str) -> None:
        """Raises UserError unless the levels fit their range."""
        least, most = min(self.extremes), max(self.extremes)
        if not (math.isfinite(least) and math.isfinite(most)):
            raise UserError(f"{name}: holds pixels that are no numbers (NaN or infinite).")
        if least < self.low or most > self.high:
            raise UserError(
                f"{name}: its values are from {least:.10g} to {most:.10g}, and its range is from "
                f"{self.low:.10g} to {self.high:.10g}; {_TO_STATE}."
            )
        if not self.stated and 0 < most < self.high / _UNUSED:
            raise UserError(_doubt(name, self.high, most))


_TO_STATE = (
    "state black and white in the tags SMinSampleValue (340) and SMaxSampleValue (341), or save "
    "it as 8 bit"
)


def _doubt(name: str, high: float, most: float) -> str:
    return (
        f"{name}: no value is above {most:,.0f}, and its type reaches {high:,.0f}; it may hold "
        f"fewer bits. {_TO_STATE[0].upper()}{_TO_STATE[1:]}."
    )


def _levels_of(image: Image.Image, name: str) -> _Levels:
    """Returns the range of a grey image of more than 8 bits, as the module says."""
    if image.format != "TIFF":
        transparent = image.info.get("transparency")
        transparent = transparent if isinstance(transparent, int) else None
        return _Levels(0.0, 65_535.0, stated=True, transparent=transparent)
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # of Pillow's TIFF images
    bits, kind = int(_first(tags.get(_BITS, 1))), _first(tags.get(_FORMAT, _UNSIGNED))
    low, high = (_stated(tags, names, name) for names in (_LOW, _HIGH))
    if kind == _FLOAT and high is None:
        raise UserError(f"{name}: holds floating-point pixels, and states no range; {_TO_STATE}.")
    default = 2.0 ** (bits - (kind == _SIGNED)) - 1
    levels = _Levels(
        0.0 if low is None else low,
        default if high is None else high,
        stated=high is not None or bits not in (16, 32),
        dtype=np.dtype(np.uint32) if (kind, bits) == (_UNSIGNED, 32) else None,
        white_is_zero=tags.get(_WHITE_IS_ZERO) == 0,
    )
    if not levels.low < levels.high:
        raise UserError(
            f"{name}: its tags state a range from {levels.low:.10g} to {levels.high:.10g}."
        )
    return levels


def check_high_bytes(image: Image.Image, name: str) -> None:
    """Raises UserError for 16 bits a channel of which the upper 8, all that Pillow gives, lie."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if _first(tags.get(_BITS, 1)) != 16 or image.mode not in ("RGB", "RGBA", "RGBX"):
        return
    stated = _stated(tags, _HIGH, name)
    most = max(most for _, most in image.getextrema()[:3])  # type: ignore[misc]
    if stated is not None and stated != 65_535:
        raise UserError(
            f"{name}: states colours up to {stated:.10g} of 16 bits, which cannot be read; save it "
            "as 8 bit."
        )
    if stated is None and 0 < most < 256 // _UNUSED:
        raise UserError(_doubt(name, 65_535.0, most * 256.0 + 255))


def _stated(tags: Any, names: tuple[int, ...], name: str) -> float | None:
    """Returns the number in the first of some tags that is there."""
    value = next((tags[tag] for tag in names if tag in tags), None)
    try:
        number = None if value is None else float(_first(value))
    except (TypeError, ValueError, ZeroDivisionError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise UserError(f"{name}: the tag of its range ({names[0]}, {names[1]}) is no number.")
    return number


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value

"""The published policies: the operations on an image, with their strengths and probabilities.

As timm spells them, "rand-m9-mstd0.5-inc1" (its `data/auto_augment.py`) and "original-mstd0.5", and
as big_vision does, "randaug(2,15)" (its `pp/archive/autoaugment.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from vitswin_jax.data.augment import ops, ops_big_vision
from vitswin_jax.data.augment.ops import Pixels
from vitswin_jax.data.augment.slide import Colour


@runtime_checkable
class Policy(Protocol):
    """Augments an image; all chance comes from `rng`.

    Affine maps show `fill` where they look outside, and take pixels by `interpolation`, where
    the policy's original leaves the two open.
    """

    def __call__(
        self, image: Pixels, rng: np.random.Generator, *, fill: Colour, interpolation: str
    ) -> Pixels: ...


class Op(NamedTuple):
    """An operation, and its argument at a level in [0, 10], with a sign of 1 or -1."""

    apply: Callable[..., Pixels]
    amount: Callable[[float, int], float] | None = None
    is_affine: bool = False


def _either_way(most: float) -> Callable[[float, int], float]:
    return lambda level, sign: sign * (level / 10 * most)


def _enhance(level: float, sign: int) -> float:
    del sign
    return level / 10 * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (level / 10 * 0.9))


def _at_most(limit: int, full: int) -> Callable[[float, int], int]:
    return lambda level, sign: min(limit, int(level / 10 * full))


_SOLARIZE = _at_most(256, 256)


# fmt: off
TIMM_OPS = {  # timm's LEVEL_TO_ARG and NAME_TO_OP, by its names
    "AutoContrast":         Op(ops.autocontrast),
    "Equalize":             Op(ops.equalize),
    "Invert":               Op(ops.invert),
    "Rotate":               Op(ops.rotate, _either_way(30.0), is_affine=True),
    "Posterize":            Op(ops.posterize, _at_most(4, 4)),
    "PosterizeIncreasing":  Op(ops.posterize, lambda level, sign: 4 - int(level / 10 * 4)),
    "PosterizeOriginal":    Op(ops.posterize, lambda level, sign: 4 + int(level / 10 * 4)),
    "Solarize":             Op(ops.solarize, _SOLARIZE),
    "SolarizeIncreasing":   Op(ops.solarize, lambda level, sign: 256 - _SOLARIZE(level, sign)),
    "SolarizeAdd":          Op(ops.solarize_add, _at_most(128, 110)),
    "Color":                Op(ops.color, _enhance),
    "ColorIncreasing":      Op(ops.color, _enhance_increasing),
    "Contrast":             Op(ops.contrast, _enhance),
    "ContrastIncreasing":   Op(ops.contrast, _enhance_increasing),
    "Brightness":           Op(ops.brightness, _enhance),
    "BrightnessIncreasing": Op(ops.brightness, _enhance_increasing),
    "Sharpness":            Op(ops.sharpness, _enhance),
    "SharpnessIncreasing":  Op(ops.sharpness, _enhance_increasing),
    "ShearX":               Op(ops.shear_x, _either_way(0.3), is_affine=True),
    "ShearY":               Op(ops.shear_y, _either_way(0.3), is_affine=True),
    "TranslateXRel":        Op(ops.translate_x, _either_way(0.45), is_affine=True),
    "TranslateYRel":        Op(ops.translate_y, _either_way(0.45), is_affine=True),
}
BIG_VISION_OPS = {  # its `level_to_arg`, with translate_const=100 and cutout_const=40
    "AutoContrast": Op(ops_big_vision.autocontrast),
    "Equalize":     Op(ops.equalize),
    "Invert":       Op(ops.invert),
    "Rotate":       Op(ops_big_vision.rotate, _either_way(30.0)),
    "Posterize":    Op(ops_big_vision.posterize, _at_most(8, 4)),
    "Solarize":     Op(ops_big_vision.solarize, lambda level, sign: int(level / 10 * 256)),
    "Color":        Op(ops_big_vision.color, _enhance),
    "Contrast":     Op(ops_big_vision.contrast, _enhance),
    "Brightness":   Op(ops.brightness, _enhance),
    "Sharpness":    Op(ops_big_vision.sharpness, _enhance),
    "ShearX":       Op(ops_big_vision.shear_x, _either_way(0.3)),
    "ShearY":       Op(ops_big_vision.shear_y, _either_way(0.3)),
    "TranslateX":   Op(ops_big_vision.translate_x, _either_way(100.0)),
    "TranslateY":   Op(ops_big_vision.translate_y, _either_way(100.0)),
    "Cutout":       Op(ops_big_vision.cutout, lambda level, sign: int(level / 10 * 40)),
    "SolarizeAdd":  Op(ops.solarize_add, lambda level, sign: int(level / 10 * 110)),
}
# fmt: on

# timm's _RAND_TRANSFORMS
_RAND_OPS: tuple[str, ...] = ("AutoContrast", "Equalize", "Invert", "Rotate")
_RAND_OPS += ("Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness")
_RAND_OPS += ("Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
_GROWS = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
_RAND_INCREASING_OPS = tuple(name + "Increasing" * (name in _GROWS) for name in _RAND_OPS)


def _draw_sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


@dataclass(frozen=True)
class TimmOps:
    """Applies timm's operations at levels drawn round a magnitude.

    `mstd` is the standard deviation of the level, above 100 for uniform in [0, magnitude];
    a level is kept in [0, `mmax`].
    """

    mstd: float = 0.0
    mmax: float = 10.0

    def apply(
        self,
        steps: Iterable[tuple[str, float, float]],
        image: Pixels,
        rng: np.random.Generator,
        **where: Any,
    ) -> Pixels:
        """Applies each step in turn: an operation's name, its probability and its magnitude.

        `where` are the arguments of affine operations: `fill` and `interpolation`.
        """
        for name, prob, magnitude in steps:
            if rng.random() >= prob:
                continue
            op = TIMM_OPS[name]
            amounts: list[float] = []
            if op.amount is not None:
                level = magnitude
                if self.mstd > 100:
                    level = rng.uniform(0, magnitude)
                elif self.mstd > 0:
                    level = rng.normal(magnitude, self.mstd)
                amounts = [op.amount(max(0.0, min(level, self.mmax)), _draw_sign(rng))]
            image = op.apply(image, *amounts, **(where if op.is_affine else {}))
        return image


@dataclass(frozen=True)
class RandAugment:
    """timm's RandAugment (arXiv:1909.13719): `n` operations, each applied with probability `p`.

    `inc` takes the operations whose strength grows with the magnitude `m`.
    """

    m: float = 10.0
    n: int = 2
    p: float = 0.5
    mstd: float = 0.0
    mmax: float = 10.0
    inc: bool = False

    def __call__(
        self, image: Pixels, rng: np.random.Generator, *, fill: Colour, interpolation: str
    ) -> Pixels:
        """Returns the augmented image."""
        names = _RAND_INCREASING_OPS if self.inc else _RAND_OPS
        steps = [(names[i], self.p, self.m) for i in rng.integers(len(names), size=self.n)]
        how = TimmOps(self.mstd, self.mmax)
        return how.apply(steps, image, rng, fill=fill, interpolation=interpolation)


@dataclass(frozen=True)
class BigVisionRandAugment:
    """big_vision's RandAugment: `layers` operations, always applied, at one magnitude."""

    layers: int
    magnitude: float

    def __call__(
        self, image: Pixels, rng: np.random.Generator, *, fill: Colour, interpolation: str
    ) -> Pixels:
        """Returns the augmented image; its operations know their own fill and interpolation."""
        del fill, interpolation
        names = tuple(BIG_VISION_OPS)
        for index in rng.integers(len(names), size=self.layers):
            op = BIG_VISION_OPS[names[index]]
            amounts: list[float | tuple[int, ...]] = []
            if names[index] == "Cutout":
                amounts = [tuple(int(rng.integers(side)) for side in image.shape[:2])]
            if op.amount is not None:
                amounts.append(op.amount(self.magnitude, _draw_sign(rng)))
            image = op.apply(image, *amounts)
        return image


@dataclass(frozen=True)
class ThreeAugment:
    """One of solarise, grey and blur, each as likely (DeiT III, arXiv:2204.07118, section 3)."""

    def __call__(
        self, image: Pixels, rng: np.random.Generator, *, fill: Colour, interpolation: str
    ) -> Pixels:
        """Returns the augmented image."""
        del fill, interpolation
        choice = rng.integers(3)
        if choice == 0:
            return ops.solarize(image, 128)
        return ops.grey(image) if choice == 1 else ops.gaussian_blur(image, rng.uniform(0.1, 2.0))


_RAND_PART = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)")
_BIG_VISION = re.compile(r"randaug\((\d+),\s*(\d+(?:\.\d+)?)\)")


def parse_rand_augment(text: str) -> Policy | str:
    """Returns the policy that `text` spells, or what is wrong with it."""
    if matched := _BIG_VISION.fullmatch(text):
        return BigVisionRandAugment(int(matched[1]), float(matched[2]))
    first, *parts = text.split("-")
    if first != "rand":
        return (
            f"rand_augment={text!r} must begin with 'rand', as in 'rand-m9-mstd0.5-inc1', or be "
            "as in 'randaug(2,15)'"
        )
    found = {part: _RAND_PART.fullmatch(part) for part in parts}
    wrong = [part for part, match in found.items() if match is None]
    values = {match[1]: float(match[2]) for match in found.values() if match}
    wrong += [
        f"{key}{value:g}"
        for key, value in values.items()
        if (math.isinf(value) and key != "mstd")
        or (key == "n" and value not in range(1, 16))
        or (key == "p" and value > 1)
        or (key == "mmax" and value == 0)
        or (key == "inc" and value not in (0, 1))
    ]
    if wrong or len(values) < len(parts):
        return (
            f"rand_augment={text!r}: {', '.join(wrong) or 'a part given twice'} is not understood; "
            "the parts are m (magnitude), n (1 to 15 layers), p (probability in [0, 1]), mstd, "
            "mmax (above 0) and inc (0 or 1), each once"
        )
    kinds = {"n": int, "inc": bool}
    return RandAugment(**{key: kinds.get(key, float)(value) for key, value in values.items()})

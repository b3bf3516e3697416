"""AutoAugment's policies: pairs of operations, found by search (arXiv:1805.09501)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from vitswin_jax.data.augment.ops import Pixels
from vitswin_jax.data.augment.policies import Policy, ThreeAugment, TimmOps
from vitswin_jax.data.augment.slide import Colour

SubPolicy = tuple[tuple[str, float, float], ...]  # operation, probability, magnitude


def _read(table: str) -> tuple[SubPolicy, ...]:
    """Reads one sub-policy a line, its operations divided by commas."""
    return tuple(
        tuple(
            (name, float(prob), float(magnitude))
            for name, prob, magnitude in (op.split() for op in line.split(","))
        )
        for line in table.strip().splitlines()
    )


# arXiv:1805.09501, table 9: ImageNet.
_ORIGINAL = """
PosterizeOriginal 0.4 8, Rotate 0.6 9
Solarize 0.6 5, AutoContrast 0.6 5
Equalize 0.8 8, Equalize 0.6 3
PosterizeOriginal 0.6 7, PosterizeOriginal 0.6 6
Equalize 0.4 7, Solarize 0.2 4
Equalize 0.4 4, Rotate 0.8 8
Solarize 0.6 3, Equalize 0.6 7
PosterizeOriginal 0.8 5, Equalize 1.0 2
Rotate 0.2 3, Solarize 0.6 8
Equalize 0.6 8, PosterizeOriginal 0.4 6
Rotate 0.8 8, Color 0.4 0
Rotate 0.4 9, Equalize 0.6 2
Equalize 0.0 7, Equalize 0.8 8
Invert 0.6 4, Equalize 1.0 8
Color 0.6 4, Contrast 1.0 8
Rotate 0.8 8, Color 1.0 2
Color 0.8 8, Solarize 0.8 7
Sharpness 0.4 7, Invert 0.6 8
ShearX 0.6 5, Equalize 1.0 9
Color 0.4 0, Equalize 0.6 3
Equalize 0.4 7, Solarize 0.2 4
Solarize 0.6 5, AutoContrast 0.6 5
Invert 0.6 4, Equalize 1.0 8
Color 0.6 4, Contrast 1.0 8
Equalize 0.8 8, Equalize 0.6 3
"""

# tensorflow/tpu's EfficientNet, `autoaugment.py: policy_v0`; big_vision's copy is the same.
_V0 = """
Equalize 0.8 1, ShearY 0.8 4
Color 0.4 9, Equalize 0.6 3
Color 0.4 1, Rotate 0.6 8
Solarize 0.8 3, Equalize 0.4 7
Solarize 0.4 2, Solarize 0.6 2
Color 0.2 0, Equalize 0.8 8
Equalize 0.4 8, SolarizeAdd 0.8 3
ShearX 0.2 9, Rotate 0.6 8
Color 0.6 1, Equalize 1.0 2
Invert 0.4 9, Rotate 0.6 0
Equalize 1.0 9, ShearY 0.6 3
Color 0.4 7, Equalize 0.6 0
Posterize 0.4 6, AutoContrast 0.4 7
Solarize 0.6 8, Color 0.6 9
Solarize 0.2 4, Rotate 0.8 9
Rotate 1.0 7, TranslateYRel 0.8 9
ShearX 0.0 0, Solarize 0.8 4
ShearY 0.8 0, Color 0.6 4
Color 1.0 0, Rotate 0.6 2
Equalize 0.8 4, Equalize 0.0 8
Equalize 1.0 4, AutoContrast 0.6 2
ShearY 0.4 7, SolarizeAdd 0.6 7
Posterize 0.8 2, Solarize 0.6 10
Solarize 0.6 8, Equalize 0.6 1
Color 0.8 6, Rotate 0.4 5
"""

POLICIES = {  # timm's names; with "r", posterising discards more bits the higher its magnitude
    "original": _read(_ORIGINAL),
    "originalr": _read(_ORIGINAL.replace("PosterizeOriginal", "PosterizeIncreasing")),
    "v0": _read(_V0),
    "v0r": _read(_V0.replace("Posterize", "PosterizeIncreasing")),
}


@dataclass(frozen=True)
class AutoAugment:
    """One of a policy's sub-policies, each as likely, with timm's operations."""

    name: str
    mstd: float = 0.0

    def __call__(
        self, image: Pixels, rng: np.random.Generator, *, fill: Colour, interpolation: str
    ) -> Pixels:
        """Returns the augmented image."""
        policy = POLICIES[self.name]
        steps, how = policy[rng.integers(len(policy))], TimmOps(self.mstd)
        return how.apply(steps, image, rng, fill=fill, interpolation=interpolation)


def parse_auto_augment(text: str) -> Policy | str:
    """Returns the policy that `text` spells, or what is wrong with it."""
    if text == "3a":
        return ThreeAugment()
    name, *parts = text.split("-")
    mstd = re.fullmatch(r"mstd(\d+(?:\.\d+)?)", parts[0]) if len(parts) == 1 else None
    if name not in POLICIES or (parts and mstd is None):
        return (
            f"auto_augment={text!r} must be '3a', or one of {', '.join(POLICIES)}, after which "
            "'-mstd0.5' may spread the magnitudes"
        )
    return AutoAugment(name, float(mstd[1]) if mstd else 0.0)

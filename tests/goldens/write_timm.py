"""Writes goldens/timm_ops.npz: timm's own operations on a small photograph.

python tests/goldens/write_timm.py

Made with timm 1.0.31, torchvision 0.28.0 and Pillow 13.0.0. A key is "operation level sign":
`NAME_TO_OP[operation]` with the arguments that `LEVEL_TO_ARG[operation]` gives at that level,
with its coin replaced by the sign, the fill (124, 116, 104) and bicubic interpolation.
"""

from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from PIL import Image

FILL = (124, 116, 104)
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "ColorIncreasing")
# torchvision has no build for every torch; timm needs none of its compiled operators.
register = torch.library.register_fake
torch.library.register_fake = lambda name, *rest, **more: (
    (lambda function: function)
    if str(name).startswith("torchvision::")
    else register(name, *rest, **more)
)

import torchvision.transforms.functional as vision  # noqa: E402
from timm.data import auto_augment  # noqa: E402


def apply(image, name, level, *, sign=1, resample=Image.Resampling.BICUBIC):
    auto_augment._randomly_negate = lambda value: sign * value
    to_arguments = auto_augment.LEVEL_TO_ARG[name]
    arguments = to_arguments(level, {}) if to_arguments else ()
    function = auto_augment.NAME_TO_OP[name]
    return np.asarray(function(image, *arguments, fillcolor=FILL, resample=resample))


def main():
    flower = sklearn.datasets.load_sample_image("flower.jpg")
    image = Image.fromarray(flower).resize((26, 20), Image.Resampling.BICUBIC)
    goldens = {"image": np.asarray(image)}
    for name, levels in auto_augment.LEVEL_TO_ARG.items():
        if name in ("TranslateX", "TranslateY", "GaussianBlurRand"):
            continue  # by pixels, and by chance: no policy of ours has them
        for level in (0.0,) if levels is None else (3.2, 9.0):
            goldens[f"{name} {level:g} 1"] = apply(image, name, level)
        if name in SIGNED:
            goldens[f"{name} 9 -1"] = apply(image, name, 9.0, sign=-1)
    for name in ("Rotate", "ShearX", "TranslateYRel"):
        bilinear = apply(image, name, 7.0, resample=Image.Resampling.BILINEAR)
        goldens[f"{name} bilinear"] = bilinear
    for shift in (-0.3, 0.1):
        goldens[f"hue {shift}"] = np.asarray(vision.adjust_hue(image, shift))
    goldens["grey"] = np.asarray(vision.to_grayscale(image, 3))
    np.savez_compressed(Path(__file__).parent / "data" / "timm_ops.npz", **goldens)


if __name__ == "__main__":
    main()

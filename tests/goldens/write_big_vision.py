"""Writes goldens/big_vision_ops.npz: big_vision's own operations on a small photograph.

python tests/goldens/write_big_vision.py AUTOAUGMENT_PY

Made with TensorFlow 2.21.0 and `big_vision/pp/archive/autoaugment.py` of google-research/big_vision
at 0127fb6. Its TensorFlow Addons no longer install, so their three functions stand here, on the
kernel that they called. A key is "operation level": the operation with the arguments that
`level_to_arg` gives at that level (translate_const=100, cutout_const=40), with its coin replaced by
the level's sign, in a graph; "Cutout row column level" has its centre instead of chance.
"""

import importlib.util
import math
import sys
import types
from pathlib import Path

import numpy as np
import tensorflow as tf

ENHANCE, SHEAR = (0, 3, 10, 15, 20), (3, 10, 15, -20)
LEVELS = {
    "AutoContrast": (10,),
    "Equalize": (10,),
    "Invert": (10,),
    "Rotate": (0, 10, 15, -20),
    "Posterize": ENHANCE,
    "Solarize": ENHANCE,
    "Color": ENHANCE,
    "Contrast": ENHANCE,
    "Brightness": ENHANCE,
    "Sharpness": ENHANCE,
    "ShearX": SHEAR,
    "ShearY": SHEAR,
    "TranslateX": (0.55, 1, -1, 15),
    "TranslateY": (0.55, 1, -1),
    "SolarizeAdd": ENHANCE,
}


def transform(image, values):
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.reshape(tf.cast(values, tf.float32), (1, 8)),
        output_shape=tf.shape(image)[:2],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )[0]


def translate(image, by):
    x, y = (tf.cast(value, tf.float32) for value in by)
    return transform(image, tf.stack([1.0, 0.0, -x, 0.0, 1.0, -y, 0.0, 0.0]))


def rotate(image, angle):
    angle = tf.cast(angle, tf.float32)
    bottom, right = (tf.cast(side - 1, tf.float32) for side in image.shape[:2])
    cos, sin = tf.cos(angle), tf.sin(angle)
    x = (right - (cos * right - sin * bottom)) / 2.0
    y = (bottom - (sin * right + cos * bottom)) / 2.0
    return transform(image, tf.stack([cos, -sin, x, sin, cos, y, 0.0, 0.0]))


def load(path):
    addons = types.ModuleType("tensorflow_addons")
    addons.image = types.SimpleNamespace(transform=transform, translate=translate, rotate=rotate)
    sys.modules["tensorflow_addons"] = addons
    spec = importlib.util.spec_from_file_location("autoaugment", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["autoaugment"] = module
    spec.loader.exec_module(module)
    return module


def main(path):
    original = load(path)
    folder = Path(__file__).parent / "data"
    image = np.load(folder / "timm_ops.npz")["image"]
    goldens = {}
    constants = original.HParams(cutout_const=40, translate_const=100)
    for name, levels in LEVELS.items():
        for level in levels:
            sign = math.copysign(1, level)
            original._randomly_negate_tensor = lambda x, sign=sign: sign * x
            function, _, arguments = original._parse_policy_info(
                name, 1.0, float(abs(level)), [128] * 3, constants
            )
            run = tf.function(lambda x, f=function, a=arguments: f(x, *a))
            goldens[f"{name} {level}"] = run(image).numpy()
    for row, column, level in ((0, 0, 15), (12, 25, 10), (19, 7, 3)):
        centre = iter((row, column))
        original.tf.random_uniform = lambda *_, it=centre, **__: tf.constant(next(it))
        run = tf.function(lambda x, half=int(level / 10 * 40): original.cutout(x, half, [128] * 3))
        goldens[f"Cutout {row} {column} {level}"] = run(image).numpy()
    np.savez_compressed(folder / "big_vision_ops.npz", **goldens)


if __name__ == "__main__":
    main(sys.argv[1])

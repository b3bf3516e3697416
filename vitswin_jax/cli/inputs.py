"""Inputs of `vitswin predict` and `vitswin explain`: weights, images and class names."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitswin_jax.cli.images import find_images, read_image
from vitswin_jax.core.terminal import say_error
from vitswin_jax.core.types import UserError

if TYPE_CHECKING:
    from jax import Array

    from vitswin_jax.data.augment.transforms import Preprocess
    from vitswin_jax.weights.open import Pretrained

MODEL_HELP = "Name the model of the weights, if the file does not show it."
SPLIT_HELP = "Read this split or part, such as test[:500] (default: the run's test split, or test)."
DATA_DIR_HELP = "Read TFDS datasets from DIR."
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""What weights files end in, for a line about arguments in the wrong order."""

OUTSIDE_HELP = "Let a table name files outside its folder."
DTYPES = ("float32", "bfloat16")
IMG_SIZE_HELP = "Take images of this size; position tables are resized."

Class = tuple[int, str, float]
"""A class: its number, its name, its probability."""


def image_size(text: str) -> int | tuple[int, int]:
    """Reads N or HxW; argparse says so where it is neither."""
    height, *width = (int(side) for side in text.lower().split("x"))
    if len(width) > 1 or min([height, *width]) < 1:
        raise ValueError(text)
    return (height, width[0]) if width else height


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Declares WEIGHTS."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="Take the weights from a run's workdir, a file of any source or a published name.",
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Declares WEIGHTS, the images and --model."""
    add_weights(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="Read these images: files, folders, patterns such as 'a/**/*.jpg', http(s) "
        "addresses, or - for standard input.",
    )
    parser.add_argument("--model", metavar="NAME", help=MODEL_HELP)
    parser.add_argument("--img-size", type=image_size, metavar="N|HxW", help=IMG_SIZE_HELP)
    add_dtype(parser)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Declares --dtype."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="Compute activations in this type (default: as in the file).",
    )


def open_weights(args: argparse.Namespace, *others: str, **fields: Any) -> Pretrained:
    """Opens WEIGHTS as a command's --model, --dtype and `fields` want it.

    Raises UserError where there are none; where one of the `others`, the command's images or its
    dataset, is weights, the line has the right order.
    """
    from vitswin_jax.weights.open import open_pretrained

    if getattr(args, "dtype", None) is not None:  # `push` has none
        fields["dtype"] = args.dtype
    try:
        return open_pretrained(args.weights, args.model, **fields)
    except UserError:
        check_order(args, *others)
        raise


def check_order(args: argparse.Namespace, *others: str) -> None:
    """Raises UserError, with the right order, where `others` have the weights that come first."""
    swapped = [other for other in others if is_weights(other)]
    if swapped and not is_weights(args.weights):
        rest = [args.weights, *(other for other in others if other != swapped[0])]
        command = shlex.join(["vitswin", args.command[1], swapped[0], *rest])
        raise UserError(
            f"{args.weights} has no weights, but {swapped[0]} has; weights come first: {command}."
        )


def is_weights(name: str) -> bool:
    """Returns whether a name is a run's folder, a weights file by its suffix, or published."""
    from vitswin_jax.weights.published import find_published

    if Path(name).expanduser().exists():
        return holds_weights(name)
    try:
        return find_published(name) is not None
    except UserError:  # the name of a collection is in it, and not that of a file
        return False


def holds_weights(name: str) -> bool:
    """Returns whether a path is a run's folder or, by its suffix, a weights file."""
    from vitswin_jax.weights.locate import locate

    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return locate(path).file.exists()
    except UserError:
        return False
    return path.suffix in WEIGHTS_SUFFIXES and path.exists()


class ImageReader:
    """Reads images and prepares them; logs which could not be read, and reads the others."""

    def __init__(self, preprocess: Preprocess) -> None:
        """Takes the preprocessing, which resizes and crops the images."""
        self.failed = 0
        self._preprocess = preprocess

    def read(self, arguments: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, prepared image) of all that the arguments name (`images.find_images`)."""
        for name in find_images(arguments):
            if isinstance(name, UserError):
                self._report(name)
                continue
            try:
                image = read_image(name, channels=self._preprocess.channels)
            except UserError as error:
                self._report(error)
            else:
                yield name, self._preprocess.image(image)

    def _report(self, error: UserError) -> None:
        self.failed += 1
        say_error(error)


def as_probabilities(pretrained: Pretrained) -> Callable[[Array], Array]:
    """Returns softmax or, if an image may have several classes, each class's sigmoid."""
    import jax

    return jax.nn.sigmoid if pretrained.multi_label else jax.nn.softmax


def make_classifier(pretrained: Pretrained) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from an image, float32 (h, w, c), to its class probabilities (k,)."""
    import jax

    model, to_probabilities = pretrained.model, as_probabilities(pretrained)

    @jax.jit
    def probabilities(variables, image):
        return to_probabilities(model.apply(variables, image[None], train=False)[0])

    return lambda image: np.asarray(probabilities(pretrained.variables, image))


def most_probable(names: Sequence[str], probabilities: np.ndarray, count: int) -> list[Class]:
    """Returns the most probable classes, in order."""
    order = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return [(i, names[i], float(probabilities[i])) for i in order]

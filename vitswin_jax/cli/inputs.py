"""What `vitswin predict` and `vitswin explain` are given: weights, images and classes' names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitswin_jax.cli.images import find_images, read_image
from vitswin_jax.core.terminal import say_error
from vitswin_jax.core.types import UserError

MODEL_HELP = "The weights are of this model. It is needed only where the file does not show it."
SPLIT_HELP = (
    "This part of the data is read, such as test[:500]. Without it, the run's own, or test."
)
DATA_DIR_HELP = "TFDS keeps its datasets in DIR."
OUTSIDE_HELP = "A table may name files outside its folder."
IMG_SIZE_HELP = "Position tables are resized to this image size."


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Declares WEIGHTS."""
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="The weights are a run's workdir, a file of any source or a published name.",
    )


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Declares WEIGHTS, the images and --model."""
    add_weights(parser)
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="Images are files, folders with all their images, patterns such as 'a/**/*.jpg', "
        "http(s) addresses, or - for one on standard input.",
    )
    parser.add_argument("--model", metavar="NAME", help=MODEL_HELP)


class ImageReader:
    """Reads images and prepares them; says which could not be read, and goes on."""

    def __init__(self, prepare: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes what is made of an image, uint8 (h, w, 3)."""
        self.failed = 0
        self._prepare = prepare

    def read(self, arguments: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, prepared image) of all that the arguments name (`images.find_images`)."""
        for name in find_images(arguments):
            if isinstance(name, UserError):
                self._report(name)
                continue
            try:
                image = read_image(name)
            except UserError as error:
                self._report(error)
            else:
                yield name, self._prepare(image)

    def _report(self, error: UserError) -> None:
        self.failed += 1
        say_error(error)


def make_classifier(model, variables) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from an image, float32 (h, w, 3), to its class probabilities (k,)."""
    import jax

    @jax.jit
    def probabilities(variables, image):
        return jax.nn.softmax(model.apply(variables, image[None], train=False)[0])

    return lambda image: np.asarray(probabilities(variables, image))

"""Images from which an export takes the ranges of activations (`vitswin export --calibrate`)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from vitswin_jax.cli.images import find_images, read_image
from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import file_paths, images_among, is_folder

if TYPE_CHECKING:
    from vitswin_jax.export.program import Program

IMAGES = 256
"""Images that calibration reads at most, at equal distances in what is named."""


def calibration_images(
    args: argparse.Namespace, program: Program
) -> tuple[str, UInt8[np.ndarray, "n h w c"]]:
    """Returns the name of what `args.calibrate` names, and images of it, resized and cropped.

    A folder with images directly in it gives these, and needs no classes. Otherwise the name is a
    dataset's, by default the one of the training. Raises UserError where none is named, it cannot
    be opened, or one of the images cannot be read.
    """
    folder = args.calibrate
    if folder is not None and is_folder(folder) and images_among(file_paths(folder, deep=False)):
        name, images = folder, _of_folder(folder, program.preprocess.channels)
    else:
        name, images = _of_dataset(args, program)
    return name, np.stack([program.preprocess.image(image) for image in images])


def _of_folder(folder: str, channels: int) -> Iterator[np.ndarray]:
    found = find_images([folder])
    for place in _spread(len(found)):
        name = found[place]
        if isinstance(name, UserError):
            raise name
        yield read_image(name, channels=channels)


def _of_dataset(args: argparse.Namespace, program: Program) -> tuple[str, Iterator[np.ndarray]]:
    from vitswin_jax.cli.evaluate import open_evaluated

    metadata = program.metadata
    if args.calibrate is None and not metadata.provenance.get("dataset"):
        raise UserError(
            f"{args.weights}: does not state what it was trained on; name a dataset or a folder of "
            "images with --calibrate."
        )
    split = args.calibrate_split or args.split
    options = {**vars(args), "dataset": args.calibrate, "split": split}
    source = open_evaluated(argparse.Namespace(**options), metadata)
    places = _spread(len(source))
    decode = program.preprocess.decode
    return source.name, (decode(source[i]["image"], name=source.describe(i)) for i in places)


def _spread(count: int) -> list[int]:
    """Returns up to IMAGES numbers below `count` at equal distances."""
    taken = min(count, IMAGES)
    return [place * count // taken for place in range(taken)]

"""`vitswin predict`: what images show."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vitswin_jax.types import UserError

_BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="a run's workdir, a weights file or a published name"
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="files, folders (all their images), or - for one on standard input",
    )
    parser.add_argument("--model", metavar="NAME", help="the variant, where the file is unclear")
    parser.add_argument(
        "--top-k", type=_positive, default=5, metavar="K", help="classes to name (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")


def run(args: argparse.Namespace) -> int:
    """Prints the most probable classes of each image; 1 where an image could not be read."""
    from vitswin_jax.pretrained import load_metadata, load_pretrained, make_preprocess
    from vitswin_jax.published import class_names

    metadata = load_metadata(args.weights, args.model)
    model, variables = load_pretrained(args.weights, args.model)
    if not model.num_classes:
        raise UserError(f"{args.weights}: the model has no head and names no classes.")
    names = metadata.class_names or class_names(metadata.provenance.get("class_list")) or ()
    if len(names) != model.num_classes:
        names = tuple(f"class {i}" for i in range(model.num_classes))
    classify = _make_classifier(model, variables)
    reader = _Reader(make_preprocess(args.weights, args.model))
    show = _print_json if args.json else _print_table
    images = reader.read(args.images)
    while batch := list(itertools.islice(images, _BATCH)):
        paths, inputs = zip(*batch, strict=True)
        for path, probabilities in zip(paths, classify(inputs), strict=True):
            order = np.argsort(-probabilities, kind="stable")[: args.top_k].tolist()
            show(path, [(i, names[i], float(probabilities[i])) for i in order])
    return 1 if reader.failed else 0


class _Reader:
    """Reads images as the model's input; says which could not be read, and goes on."""

    def __init__(self, preprocess: Callable[[np.ndarray], np.ndarray]) -> None:
        self.failed = 0
        self._preprocess = preprocess

    def read(self, arguments: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        from vitswin_jax.data.decode import decode_image

        for argument in arguments:
            try:
                paths = _images_of(argument)
            except UserError as error:
                self._report(error)
                continue
            for path in paths:
                try:
                    image = decode_image(_bytes_of(path), name=path)
                except UserError as error:
                    self._report(error)
                else:
                    yield path, self._preprocess(image)[0]

    def _report(self, error: UserError) -> None:
        self.failed += 1
        print(f"error: {error}", file=sys.stderr)


def _images_of(argument: str) -> list[str]:
    from vitswin_jax.data.files import IMAGE_SUFFIXES

    folder = Path(argument)
    if not folder.is_dir():
        return [argument]
    found = [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise UserError(
            f"{argument}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this folder."
        )
    return found


def _bytes_of(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error


def _make_classifier(model, variables) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Returns a function from a few images to their class probabilities."""
    import jax

    @jax.jit
    def probabilities(variables, images):
        return jax.nn.softmax(model.apply(variables, images, train=False))

    def classify(images: Sequence[np.ndarray]) -> np.ndarray:
        # One image, or a whole batch: two shapes to compile for at most.
        size = 1 if len(images) == 1 else _BATCH
        batch = np.zeros((size, *images[0].shape), np.float32)
        batch[: len(images)] = images
        return np.asarray(probabilities(variables, batch))[: len(images)]

    return classify


def _print_table(path: str, predictions: list[tuple[int, str, float]]) -> None:
    print(path)
    width = max(len(name) for _, name, _ in predictions)
    for _, name, probability in predictions:
        print(f"  {name:{width}}  {100 * probability:6.2f} %")


def _print_json(path: str, predictions: list[tuple[int, str, float]]) -> None:
    classes = [
        {"index": index, "name": name, "probability": probability}
        for index, name, probability in predictions
    ]
    print(json.dumps({"image": path, "predictions": classes}, ensure_ascii=False))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number

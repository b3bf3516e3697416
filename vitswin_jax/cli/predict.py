"""`vitswin predict`: what images show."""

from __future__ import annotations

import argparse
import itertools
import json

import numpy as np

from vitswin_jax.cli.inputs import BATCH, ImageReader, add_inputs, make_classifier, names_of_classes
from vitswin_jax.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_inputs(parser)
    parser.add_argument(
        "--top-k", type=_positive, default=5, metavar="K", help="classes to name (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")


def run(args: argparse.Namespace) -> int:
    """Prints the most probable classes of each image; 1 where an image could not be read."""
    from vitswin_jax.pretrained import load_metadata, load_pretrained, make_preprocess

    metadata = load_metadata(args.weights, args.model)
    model, variables = load_pretrained(args.weights, args.model)
    if not model.num_classes:
        raise UserError(f"{args.weights}: the model has no head and names no classes.")
    names = names_of_classes(metadata, model.num_classes)
    classify = make_classifier(model, variables)
    preprocess = make_preprocess(args.weights, args.model)
    reader = ImageReader(lambda image: preprocess(image)[0])
    show = _print_json if args.json else _print_table
    images = reader.read(args.images)
    while batch := list(itertools.islice(images, BATCH)):
        paths, inputs = zip(*batch, strict=True)
        for path, probabilities in zip(paths, classify(inputs), strict=True):
            order = np.argsort(-probabilities, kind="stable")[: args.top_k].tolist()
            show(path, [(i, names[i], float(probabilities[i])) for i in order])
    return 1 if reader.failed else 0


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

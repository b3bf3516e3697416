"""`vitswin predict`: classes and features of images."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitswin_jax.cli.images import find_images, read_image
from vitswin_jax.cli.inputs import (
    Class,
    add_inputs,
    as_probabilities,
    most_probable,
    open_weights,
)
from vitswin_jax.cli.table import format_table
from vitswin_jax.core.atomic import check_writable, replacing
from vitswin_jax.core.terminal import progress, say, say_error, say_json
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.data.channels import as_rgb
from vitswin_jax.report.sheet import AT_MOST, Picture, thumbnail, write_sheet

if TYPE_CHECKING:
    from jax import Array

    from vitswin_jax.data.augment.transforms import Preprocess
    from vitswin_jax.weights.open import Pretrained


_BATCH = 16
_THREADS = 4  # that read and decode, which leaves the GIL
_PROGRESS = 100  # images from which on progress is shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_inputs(parser)
    add = parser.add_argument
    add(
        "--top-k",
        type=_positive,
        default=5,
        metavar="K",
        help="Print the K most probable classes (default: 5).",
    )
    add("--json", action="store_true", help="Print one JSON object per image.")
    add("--sheet", metavar="FILE.png", help="Draw a contact sheet: each image with its class.")
    add(
        "--features",
        metavar="FILE.npz",
        help="Write the pooled embeddings before the classifier, `features` float32 (images, "
        "width), and `paths`.",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the most probable classes of each image; 1 where an image could not be read."""
    for path in filter(None, (args.sheet, args.features)):
        check_writable(path)
    images = find_images(args.images)
    _check_sheet(args, len(images))
    pretrained = open_weights(args, *args.images, img_size=args.img_size)
    if not pretrained.model.num_classes and not (args.features and args.sheet is None):
        raise UserError(
            f"{args.weights}: the model has no head, so it predicts no classes; "
            "--features FILE.npz writes its features."
        )
    look = _make_look(pretrained, size=1 if len(images) == 1 else _BATCH)  # compiled for one shape
    small = args.sheet is not None
    read = functools.partial(_read, preprocess=pretrained.preprocess, small=small)
    results = _Results(args, pretrained.class_names)
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress(len(images), unit="image", leave=False, show=len(images) >= _PROGRESS) as bar,
    ):
        for start in range(0, len(images), _BATCH):
            items = list(pool.map(read, images[start : start + _BATCH]))
            answers = iter(look([item.pixels for item in items if isinstance(item, _Item)]))
            for item in items:
                if isinstance(item, UserError):
                    results.report(item)
                else:
                    results.take(item, next(answers))
            bar.update(len(items))
    results.write()
    return 1 if results.failed else 0


class _Item(NamedTuple):
    name: str
    pixels: np.ndarray  # float32 (h, w, c): the model's input
    small: np.ndarray | None  # for the contact sheet


class _Answer(NamedTuple):
    features: np.ndarray  # float32 (d)
    probabilities: np.ndarray | None  # float32 (k); None: there is no head


def _read(name: str | UserError, *, preprocess: Preprocess, small: bool) -> _Item | UserError:
    if isinstance(name, UserError):
        return name
    try:
        image = read_image(name, channels=preprocess.channels)
    except UserError as error:  # it is reported in its turn, and the others are done
        return error
    return _Item(name, preprocess(image), thumbnail(as_rgb(image)) if small else None)


def _make_look(
    pretrained: Pretrained, *, size: int
) -> Callable[[Sequence[np.ndarray]], list[_Answer]]:
    """Returns a function from at most `size` images to the model's answer for each.

    Probabilities are softmax's or, if an image may have several classes, each class's own.
    """
    import jax

    from vitswin_jax.nn.batch import infer
    from vitswin_jax.nn.forms import compiler_options

    model, variables = pretrained.model, pretrained.variables
    to_probabilities = as_probabilities(pretrained)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def apply(variables: Params, images: Array) -> tuple[Array, Array | None]:
        features = infer(model, variables["params"], images, method="features")
        if not model.num_classes:
            return features, None
        logits = infer(model, variables["params"], images)  # compiled, the two share their work
        return features, to_probabilities(logits)

    def look(images: Sequence[np.ndarray]) -> list[_Answer]:
        if not images:
            return []
        batch = np.zeros((size, *images[0].shape), np.float32)
        batch[: len(images)] = images
        features, probabilities = jax.device_get(apply(variables, batch))
        rows = itertools.repeat(None) if probabilities is None else probabilities
        return [_Answer(*row) for row in zip(features, rows, strict=False)][: len(images)]

    return look


class _Results:
    """Prints results as they come, and keeps what is written at the end."""

    def __init__(self, args: argparse.Namespace, names: Sequence[str]) -> None:
        self.failed = 0
        self._args, self._names = args, names
        self._pictures: list[Picture] = []
        self._features: list[np.ndarray] = []
        self._paths: list[str] = []

    def report(self, error: UserError) -> None:
        """Prints the line of an image that could not be read."""
        self.failed += 1
        say_error(error)

    def take(self, item: _Item, answer: _Answer) -> None:
        """Prints an image's classes; keeps its features and its picture if they are wanted."""
        if self._args.features:
            self._features.append(answer.features)
            self._paths.append(item.name)
        if answer.probabilities is None:
            return
        classes = most_probable(self._names, answer.probabilities, self._args.top_k)
        if self._args.json:
            say_json(_as_json(item.name, classes))
        else:
            say(item.name, *_as_table(classes))
        if item.small is not None:
            _, name, probability = classes[0]
            below = f"{100 * probability:.1f} %  {name}", item.name.rpartition("/")[2]
            self._pictures.append(Picture(item.small, below))

    def write(self) -> None:
        """Writes the files that are asked for, and says which; not where no image was read."""
        written = []
        if self._pictures:
            written.append(f"contact sheet: {write_sheet(self._args.sheet, self._pictures)}")
        if self._features:
            features = np.stack(self._features)
            with replacing(self._args.features) as temporary, temporary.open("wb") as file:
                np.savez(file, features=features, paths=np.array(self._paths))
            shape = "x".join(map(str, features.shape))
            written.append(f"features: {self._args.features} ({shape})")
        if not self._args.json:
            say(*written)


def _check_sheet(args: argparse.Namespace, images: int) -> None:
    if args.sheet is None:
        return
    if not args.sheet.lower().endswith(".png"):
        raise UserError(f"--sheet {args.sheet}: the contact sheet is a PNG; call it FILE.png.")
    if images > AT_MOST:
        raise UserError(f"--sheet shows at most {AT_MOST:,} images; these are {images:,}.")


def _as_table(classes: Sequence[Class]) -> list[str]:
    rows = [(f"  {name}", f"{100 * p:6.2f} %") for _, name, p in classes]
    return format_table(rows, align="<>")


def _as_json(name: str, classes: Sequence[Class]) -> dict[str, object]:
    predictions = [{"index": i, "name": name, "probability": p} for i, name, p in classes]
    return {"image": name, "predictions": predictions}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number

"""`vitswin explain`: attention, Grad-CAM and learned parameters, as pictures and one page."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vitswin_jax.cli.inputs import (
    ImageReader,
    add_inputs,
    make_classifier,
    most_probable,
    open_weights,
)
from vitswin_jax.core.choices import one_of
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError, listed, nearest
from vitswin_jax.data.channels import as_rgb

_CLASSES = 5  # that the page lists beside an image
_MODEL = "model"  # what files are called that show no image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    from vitswin_jax.explain.pages import PARTS

    add_inputs(parser)
    add = parser.add_argument
    add(
        "--out",
        metavar="DIR",
        default="explain",
        help="Write the page and its pictures into DIR (default: explain).",
    )
    add(
        "--class",
        dest="label",
        metavar="N|NAME",
        help="Explain this class, a number or a name, by Grad-CAM (default: the predicted class).",
    )
    add(
        "--only",
        metavar="PART,...",
        type=lambda text: text.split(","),
        help=f"Draw only some of {', '.join(PARTS)} (default: all that the model has).",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the pictures and index.html; 1 where an image could not be read."""
    from vitswin_jax.explain.pages import Explainer, Section, write_page

    _check_parts(args.only)
    pretrained = open_weights(args, *args.images, img_size=args.img_size)
    model, variables = pretrained.model, pretrained.variables
    names, preprocess = pretrained.class_names, pretrained.preprocess
    label = None if args.label is None else _class_of(args.label, names, origin=args.weights)
    explainer = Explainer(model, variables, parts=args.only)
    classify = make_classifier(pretrained)
    reader = ImageReader(preprocess)
    folder, taken, sections = Path(args.out), {_MODEL}, []
    for path, given in reader.read(args.images):
        image, pixels = preprocess.normalize(given), as_rgb(given)
        shown, text, classes = label, "", []
        if names:
            probabilities = classify(image)
            best = most_probable(names, probabilities, _CLASSES)
            predicted = best[0][0]
            shown = predicted if label is None else label
            text = _says(names, probabilities, predicted, shown)
            classes = [(name, probability) for _, name, probability in best]
        found = list(explainer.of_image(image, pixels, label=shown))
        _write(folder, _name_of(path, taken), found)
        sections.append(Section(path, text, found, pixels, classes))
    if not sections:
        return 1
    found = list(explainer.of_model())
    _write(folder, _MODEL, found)
    sections += [Section("The model", "", found)] if found else []
    title = f"{type(model).__name__} explained"
    write_page(folder / "index.html", title=title, subtitle=str(args.weights), sections=sections)
    count = sum(len(section.pictures) for section in sections)
    say(f"{folder / 'index.html'}: {count} pictures")
    return 1 if reader.failed else 0


def _check_parts(parts: Sequence[str] | None) -> None:
    from vitswin_jax.explain.pages import PARTS

    for part in parts or ():
        one_of("--only", part, PARTS)


def _class_of(text: str, names: tuple[str, ...], *, origin: str) -> int:
    """Returns the class that a number, or a name in any case, means."""
    if not names:
        raise UserError(f"--class={text}: the model of {origin} has no head and no classes.")
    wanted = text.casefold()
    if found := [i for i, name in enumerate(names) if name.casefold() == wanted]:
        return found[0]
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UserError(
        f"--class={text}: {origin} has classes 0 to {len(names) - 1} and none of that name; "
        f"they are {listed(names, most=10)}{nearest(text, names) or '.'}"
    )


def _says(names: tuple[str, ...], probabilities: np.ndarray, predicted: int, explained: int) -> str:
    """Returns a line with the prediction for an image and the class of Grad-CAM."""
    said = f"Predicted {names[predicted]}, {100 * probabilities[predicted]:.1f} %."
    if explained == predicted:
        return said
    return f"{said} Grad-CAM is of {names[explained]}, {100 * probabilities[explained]:.1f} %."


def _name_of(path: str, taken: set[str]) -> str:
    """Returns the stem of the files of an image, one that no other has; adds it to `taken`."""
    stem = "stdin" if path == "-" else Path(path).stem
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def _write(folder: Path, name: str, found: Iterable) -> None:
    """Writes pictures as FOLDER/NAME.PART.png."""
    from vitswin_jax.core.atomic import replacing

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder}: {error.strerror}.") from error
    for picture in found:
        with replacing(folder / f"{name}.{picture.name}.png") as temporary:
            temporary.write_bytes(picture.data)

"""`vitswin evaluate --knn --linear-probe --few-shot`: the accuracy of a model's features."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vitswin_jax.cli.table import format_table
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import Source, UserError

Row = dict[str, Any]
"""A probe's name, its setting, its top-1 in [0, 1] and, of several draws, their deviation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the probes."""
    group = parser.add_argument_group(
        "probes",
        "They measure how well frozen features classify. They learn from the training split, and "
        "the head is not used.",
    )
    add = group.add_argument
    add("--knn", action="store_true", help="Measure k-NN accuracy (k: 5, 10, 20 and 50).")
    add("--linear-probe", action="store_true", help="Measure a linear probe (logistic regression).")
    add(
        "--few-shot",
        type=_counts,
        metavar="N,...",
        help="Measure few-shot accuracy: least squares on N images per class, such as 1,5,10.",
    )
    add(
        "--train-split",
        metavar="SPLIT",
        help="Let the probes learn from SPLIT (default: the run's training split, or train).",
    )


def is_wanted(args: argparse.Namespace) -> bool:
    """Returns whether a probe was asked for."""
    return bool(args.knn or args.linear_probe or args.few_shot)


def measure(
    args: argparse.Namespace,
    *,
    train: Source,
    test: Source,
    read_features: Callable[[Source], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Prints the accuracies that the probes which were asked for reach on `test`.

    `read_features` gives the features (n, d) and the labels of a split. Raises UserError for
    splits that cannot be compared.
    """
    from vitswin_jax.evaluate.probes import Features, check_features

    if args.output or args.figures or args.real:
        raise UserError(
            "--output, --figures and --real need an evaluation of the head; the probes only print."
        )
    if train.multi_label or test.multi_label:
        raise UserError(f"{test.name}: has several labels per image; the probes need one.")
    if train.name == test.name:
        raise UserError(
            f"{test.name}: the probes would be tested on the images that they learn from; give "
            "another --train-split or --split."
        )
    if train.class_names != test.class_names:
        raise UserError(f"{train.name} and {test.name} do not have the same classes.")
    known, asked = (Features(*read_features(source)) for source in (train, test))
    check_features(known, asked, len(test.class_names))
    rows = list(_measured(args, known, asked, num_classes=len(test.class_names)))
    facts = {"dataset": test.name, "images": len(test), "train": train.name}
    facts |= {"train_images": len(train), "width": known.x.shape[1]}
    if args.json:
        say_json(facts | {"probes": rows})
    else:
        say(*_as_table(facts, rows))


def _measured(
    args: argparse.Namespace, train: Any, test: Any, *, num_classes: int
) -> Iterator[Row]:
    from vitswin_jax.evaluate.probes import few_shot_accuracies, knn_accuracies, linear_probe

    if args.knn:
        for k, top1 in knn_accuracies(train, test, num_classes=num_classes).items():
            yield {"probe": "neighbours", "setting": f"{k}", "top1": top1}
    if args.linear_probe:
        c, top1 = linear_probe(train, test)
        yield {"probe": "linear", "setting": f"C={c:g}", "top1": top1}
    for shots in args.few_shot or ():
        found = few_shot_accuracies(train, test, shots, num_classes=num_classes)
        yield {
            "probe": "few-shot",
            "setting": f"{shots} a class",
            "top1": float(np.mean(found)),
            "deviation": float(np.std(found)),
            "draws": len(found),
        }


def _as_table(facts: Row, rows: list[Row]) -> list[str]:
    title = [
        f"{facts['dataset']}, {facts['images']:,} images, by {facts['width']} features",
        f"learned from {facts['train']}, {facts['train_images']:,} images",
    ]
    table = [("probe", "", "top-1", "")]
    for row in rows:
        spread = ""
        if "draws" in row:
            spread = f"± {100 * row['deviation']:.2f} of {row['draws']} draws"
        table.append((row["probe"], row["setting"], f"{100 * row['top1']:.2f} %", spread))
    return [*title, *format_table(table, align="<<><")]


def _counts(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"must be numbers from 1, such as 1,5,10, not {text}")
    return tuple(map(int, words))

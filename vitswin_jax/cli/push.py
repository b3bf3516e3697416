"""`vitswin push`: weights, with a model card, as a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from vitswin_jax.cli.inputs import MODEL_HELP, add_weights
from vitswin_jax.core.terminal import logger, say

log = logger(__name__)

FORMATS = ("timm", "huggingface", "native")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add = parser.add_argument
    add_weights(parser)
    add(
        "repository",
        metavar="USER/NAME",
        help="Write to this repository of the hub; it is created if it does not exist.",
    )
    add("--private", action="store_true", help="Create the repository as a private one.")
    add(
        "--license",
        metavar="ID",
        help="State this licence of the weights, by the hub's identifier, such as apache-2.0 "
        "(default: none).",
    )
    add(
        "--to",
        choices=FORMATS,
        help="Write the files of this library (default: the first of timm, huggingface and native "
        "that computes the model in the same way).",
    )
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--no-report", action="store_true", help="Leave out the page of the run.")
    add(
        "--overwrite",
        action="store_true",
        help="Write to a repository with other files: replace files of the same names and keep "
        "the others.",
    )
    add(
        "--message",
        metavar="TEXT",
        help="Give the commit this message (default: the model's name).",
    )


def run(args: argparse.Namespace) -> int:
    """Pushes the weights; prints the address, and the largest difference of what is read back."""
    from vitswin_jax.cli.inputs import open_weights
    from vitswin_jax.weights.files import describe
    from vitswin_jax.weights.publish import check_repository, push

    repository = check_repository(args.repository, private=args.private, overwrite=args.overwrite)
    pretrained = open_weights(args)
    metadata = dataclasses.replace(pretrained.metadata, preprocess=pretrained.preprocess)
    done = push(
        repository,
        pretrained.model,
        pretrained.variables,
        describe(pretrained.model, metadata),
        format=args.to,
        licence=args.license and args.license.lower(),
        page=None if args.no_report else _page(args.weights),
        message=args.message,
    )
    if done.otherwise:
        log.warning("%s: %s", args.repository, done.otherwise)
    say(
        f"{args.repository}: {metadata.name} in the format {done.format}: {', '.join(done.files)}",
        done.parity,
        f"{done.address} (commit {done.commit[:8]})",
    )
    return 0


def _page(weights: str) -> Path | None:
    """Returns the page of a run; None where the weights are no run's, or it has none."""
    from vitswin_jax.train.keep.workdir import REPORT
    from vitswin_jax.weights.runs import workdir_of
    from vitswin_jax.weights.stored import local_weights

    found = workdir_of(local_weights(weights))
    page = found and found[0] / REPORT
    return page if page and page.is_file() else None

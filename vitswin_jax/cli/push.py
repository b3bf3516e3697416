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
    add("repository", metavar="USER/NAME", help="The repository is made if there is none yet.")
    add("--private", action="store_true", help="Nobody else sees the new repository.")
    add(
        "--license",
        metavar="ID",
        help="The weights have this licence, by the hub's identifier, such as apache-2.0.",
    )
    add(
        "--to",
        choices=FORMATS,
        help="This library reads the files. Without it, the first of timm, transformers and "
        "vitswin_jax that computes the model in the same way.",
    )
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--no-report", action="store_true", help="The page of a run is left out.")
    add(
        "--overwrite",
        action="store_true",
        help="A repository with other files is written to: files of the same names are replaced, "
        "and the others stay.",
    )
    add("--message", metavar="TEXT", help="The commit has this message.")


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

    found = workdir_of(weights)
    page = found and found[0] / REPORT
    return page if page and page.is_file() else None

"""`vitswin stop`: ends a run that trains, with its results."""

from __future__ import annotations

import argparse
from pathlib import Path

from vitswin_jax.core.atomic import writing
from vitswin_jax.core.store import is_url
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    parser.add_argument(
        "workdir", metavar="WORKDIR", help="Stop the run that trains in this folder."
    )


def run(args: argparse.Namespace) -> int:
    """Asks the run of a folder to end; raises UserError where none trains there."""
    from vitswin_jax.train.keep.lock import is_held
    from vitswin_jax.train.keep.workdir import STOP
    from vitswin_jax.weights.runs import CONFIG

    if is_url(args.workdir):
        from vitswin_jax.train.keep.lease import ask_to_stop

        ask_to_stop(args.workdir)
        say(f"{args.workdir}: the run evaluates, saves and ends after its next step.")
        return 0
    workdir = Path(args.workdir).expanduser()
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir}: is no workdir of a run, which has a {CONFIG}.")
    if not is_held(workdir):
        raise UserError(f"{workdir}: no run trains there now; its weights are its newest already.")
    with writing(workdir / STOP):
        (workdir / STOP).touch()
    say(f"{workdir}: the run evaluates, saves and ends after its next step.")
    return 0

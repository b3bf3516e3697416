"""`vitswin train`, and `train.py`, which is the same: a run from its recipe to its report."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys

from vitswin_jax.cli.minutes import add_minutes, train_in_minutes
from vitswin_jax.cli.place import choose_workdir
from vitswin_jax.cli.recipe import EXAMPLES, add_recipe, list_recipes, read_config
from vitswin_jax.core.terminal import say
from vitswin_jax.core.types import UserError

_FLAGS = ("--minutes", "--base", "--workdir", "--name", "--accept-changed-data", "--profile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_recipe(parser)
    add = parser.add_argument
    add("--workdir", metavar="DIR", help="Keep the run in the folder DIR, or at gs:// or s3://.")
    add("--name", help="Keep the run in runs/NAME (default: runs/DATA-MODEL).")
    add(
        "--accept-changed-data",
        "--accept_changed_data",
        action="store_true",
        help="Resume although the data changed since the last checkpoint.",
    )
    add(
        "--profile",
        metavar="START:STOP",
        nargs="?",
        const="true",
        help="Trace these steps for XProf, counted from the start of this process (default: "
        "10:20).",
    )
    add_minutes(parser)
    _add_hosts(parser)
    parser.epilog = "\n".join([EXAMPLES, *list_recipes()])


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "Each host runs the same command, as docs/hosts.md explains."
    )
    for name, metavar, text in (
        (
            "coordinator",
            "HOST:PORT",
            "Meet the other hosts at this address, at which host 0 listens.",
        ),
        ("num-hosts", "N", "Train on N hosts; 1 trains on this host only."),
        ("host-index", "N", "Give this host the index N, counted from 0."),
        ("join-timeout", "SECONDS", "Wait this long at the start for all hosts (default: 300)."),
        (
            "lost-after",
            "SECONDS",
            "Count a host as lost after this long without a heartbeat (default: 60).",
        ),
    ):
        kind = str if name == "coordinator" else int
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
        group.add_argument(*spellings, metavar=metavar, type=kind, help=text)


def run(args: argparse.Namespace) -> int:
    """Trains and prints the result; what happens on the way goes to standard error."""
    if not any((args.recipe, args.data, args.config, args.overrides)):
        say("usage: vitswin train [RECIPE] [DATA] [--workdir DIR | --name NAME] "
            "[--section.key=value]", "", *EXAMPLES.splitlines(), "", *list_recipes(),
            "", "`vitswin train --help` explains every flag.", stream=sys.stderr)  # fmt: skip
        return 2
    from absl import logging as absl_logging

    from vitswin_jax.train.hosts.join import JOIN_TIMEOUT, LOST_AFTER, joined
    from vitswin_jax.train.keep.timing import parse_window
    from vitswin_jax.trainer import train_and_evaluate

    absl_logging.set_verbosity(absl_logging.WARNING)
    profile = None if args.profile is None else parse_window(args.profile)
    told = logging.getLogger("vitswin_jax")
    _check_hosts(args)
    told.setLevel(logging.INFO)
    if args.minutes is not None or args.base is not None:
        outcome = train_in_minutes(args, profile, also=_FLAGS)
        say(outcome)
        return 0
    config = read_config(args, also=_FLAGS)
    workdir = choose_workdir(args.workdir, args.name, config)
    with joined(
        coordinator=args.coordinator,
        num_hosts=args.num_hosts,
        host_index=args.host_index,
        join_timeout=JOIN_TIMEOUT if args.join_timeout is None else args.join_timeout,
        lost_after=LOST_AFTER if args.lost_after is None else args.lost_after,
    ) as host:
        told.setLevel(logging.WARNING if host else logging.INFO)
        result = train_and_evaluate(
            config,
            workdir,
            command=shlex.join(args.command),
            profile=profile,
            accept_changed_data=args.accept_changed_data,
            began=args.began,
        )
        if host == 0:
            say(result)
    return 0


def _check_hosts(args: argparse.Namespace) -> None:
    """Raises UserError for a number that is below its least."""
    for name, least in (
        ("num_hosts", 1),
        ("host_index", 0),
        ("join_timeout", 1),
        ("lost_after", 1),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')}={value} must be {least} or more.")

"""`vitswin train DATA --minutes N`: chooses a recipe, and trains by it within the time."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitswin_jax.cli.place import choose_workdir
from vitswin_jax.cli.recipe import Named
from vitswin_jax.core.recipes import ANY_MODEL, FROM_WEIGHTS
from vitswin_jax.core.terminal import by_name, logger
from vitswin_jax.core.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vitswin_jax.tune.choose import Task

log = logger(__name__)

_LENGTH = ("optim.epochs", "optim.total_steps", "optim.examples")


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """Declares --minutes and --base."""
    add = parser.add_argument
    add(
        "--minutes",
        metavar="N",
        type=float,
        help="Take about N minutes in all: a short trial chooses the model size, image size, "
        "batch size, learning rate and epochs. With a RECIPE it chooses the epochs only. The "
        "file recipe.py in the workdir repeats the run.",
    )
    add(
        "--base",
        metavar="WEIGHTS",
        help="Start from these weights, a run, a file or a published name (with --minutes).",
    )


def train_in_minutes(
    args: argparse.Namespace, profile: tuple[int, int] | None, *, also: Sequence[str]
) -> Any:
    """Chooses, trains and returns the outcome; a run that was stopped resumes."""
    from vitswin_jax.train.keep.working import working_in
    from vitswin_jax.tune.choose import Task

    _check(args)
    named = Named.of(args, also=also)
    fixed = named.keys()
    if wrong := [key for key in _LENGTH if key in fixed]:
        raise UserError(f"{wrong[0]}: --minutes sets the run's length; leave one of the two out.")
    set_counts = set(map(_count, fixed))
    any_model = named.recipe == ANY_MODEL

    def make(keys: Mapping[str, Any], recipe: str | None = None) -> ConfigDict:
        kept = {key: value for key, value in keys.items() if _count(key) not in set_counts}
        if recipe is None and any_model and not named.given:
            recipe = f"{ANY_MODEL}:vit"
        return named.config(kept, recipe)

    task = Task(
        make,
        fixed,
        recipe=named.given,
        own_images=not any_model and not named.recipe.startswith(f"{FROM_WEIGHTS}:"),
    )
    place = choose_workdir(args.workdir, args.name, task.make({}))
    with working_in(place) as folder:
        return _train(args, profile, task, Path(folder).expanduser())


def _train(
    args: argparse.Namespace, profile: tuple[int, int] | None, task: Task, workdir: Path
) -> Any:
    """Chooses and trains in a folder, or resumes the run that it has."""
    from vitswin_jax.train.keep.metrics import seconds_until
    from vitswin_jax.tune.choose import Task, choose
    from vitswin_jax.tune.clock import Clock
    from vitswin_jax.tune.within import last_step, resumed, train_within
    from vitswin_jax.tune.write import RECIPE
    from vitswin_jax.weights.runs import CONFIG, METRICS

    command = shlex.join(args.command)
    clock = Clock(60 * args.minutes, getattr(args, "began", time.monotonic()))
    if (workdir / RECIPE).is_file() and (workdir / CONFIG).is_file():
        log.info("minutes: resumes with %s, which the earlier trial wrote.", workdir / RECIPE)
        make = functools.partial(task.make, recipe=str(workdir / RECIPE))  # type: ignore[call-arg]
        task = Task(make, task.fixed, recipe=True)
        trained = seconds_until(workdir / METRICS, last_step(workdir))
        clock = Clock(clock.seconds, clock.begin - trained)
        choice = resumed(task, workdir, clock)
    elif (workdir / CONFIG).exists():
        raise UserError(
            f"workdir {workdir}: has a run that began without --minutes; choose another --name "
            "or --workdir, or resume it without --minutes."
        )
    else:
        choice = choose(task, clock)
        head = (
            f"Recipe that `{command}` chose.",
            "",
            by_name(f"vitswin train {workdir / RECIPE}"),
            "",
        )
        choice = replace(choice, reasons=(*head, *choice.reasons))
    options = {"profile": profile, "accept_changed_data": args.accept_changed_data}
    return train_within(task, choice, workdir, clock, command=command, **options)


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    if args.minutes is None:
        raise UserError(
            f"--base={args.base} needs --minutes; without --minutes, use --init-from {args.base}."
        )
    if not 0 < args.minutes < 1e6:
        raise UserError(f"--minutes={args.minutes:g} must be above 0, such as 10.")
    if args.coordinator is not None or args.num_hosts is not None:
        raise UserError("--minutes plans for one host; on several, name a RECIPE and --epochs.")
    if args.base is not None and args.init_from is not None:
        raise UserError("--base and --init-from name the same thing; give one of them.")
    args.init_from = args.init_from if args.base is None else args.base


def _count(key: str) -> str:
    """Returns a key without its unit: run.eval_steps and run.eval_epochs are one count.

    >>> _count("run.eval_steps"), _count("optim.warmup_epochs"), _count("optim.peak_lr")
    ('run.eval', 'optim.warmup', 'optim.peak_lr')
    """
    return re.sub(r"_(steps|epochs|examples)$", "", key)

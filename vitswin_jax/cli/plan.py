"""`vitswin plan`: memory, FLOPs and communication of a run, without its hardware."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from vitswin_jax.cli.recipe import add_recipe, read_config
from vitswin_jax.cli.table import format_table
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import UserError, counted

if TYPE_CHECKING:
    from vitswin_jax.plan.budget import Budget

MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add_recipe(parser)
    add = parser.add_argument
    add(
        "--topology",
        metavar="NAME",
        help="Plan for these devices: TPUs such as v5e:16x16 (no TPU is needed), cpu:8, gpu or "
        "gpu:4 (default: the devices of this machine).",
    )
    add("--batch", metavar="N", help="Set --batch-size by a shorter name.")
    add(
        "--classes",
        type=int,
        metavar="N",
        help="Plan for N classes, if the data are not on this machine.",
    )
    add("--json", action="store_true", help="Print the plan as one JSON object.")


def run(args: argparse.Namespace) -> int:
    """Prints the budget of a run's train step, and where it does not fit, what would."""
    from vitswin_jax.plan.budget import find_changes, make_budget
    from vitswin_jax.plan.topology import open_topology

    if args.classes is not None and args.classes < 1:
        raise UserError(f"--classes={args.classes} must be 1 or more.")
    args.batch_size = args.batch_size if args.batch is None else args.batch
    config = read_config(args, also=("--topology", "--batch", "--classes", "--json"))
    topology = open_topology(args.topology)
    if config.init_from is not None:
        say(
            f"init_from={config.init_from} is not read; the plan uses the sizes of config.model.",
            stream=sys.stderr,
        )
    budget = make_budget(config, topology, classes=args.classes)
    tried = []
    if not args.json:
        say(*_describe(budget, kind=topology.devices[0].device_kind), "")
    if not budget.fits:
        for change, after in find_changes(config, topology, budget, classes=args.classes):
            tried.append({"change": change, "total": after.total, "fits": after.fits})
            if not args.json:
                verdict = "would fit" if after.fits else "would not"
                say(f"{verdict}  {_mib(after.total)} MiB  {change}")
    if args.json:
        say_json(budget.to_dict() | {"tried": tried})
    elif not budget.fits and not any(each["fits"] for each in tried):
        say("No gradient accumulation, rematerialisation or fsdp makes it fit; use more devices.")
    return 0


def _describe(budget: Budget, *, kind: str) -> list[str]:
    """Returns a budget as lines: the run, its memory, its collectives, the verdict."""
    axes = ", ".join(f"{axis} {size}" for axis, size in budget.mesh.items())
    devices = math.prod(budget.mesh.values())
    where = f"{budget.topology}, {counted(devices, 'device')} ({kind}; {axes})"
    parts = [
        f"{budget.model}, batch {budget.batch_size}, on {where}",
        "",
        *format_table(
            [
                ["parameters", f"{budget.parameters:,}"],
                ["FLOPs a step", f"{budget.flops:.3g}"],
                ["FLOPs a step and device", f"{budget.flops / devices:.3g}"],
            ],
            align="<>",
        ),
        "",
        *format_table(
            [["a device's memory", "MiB"]]
            + [[kind, _mib(size)] for kind, size in budget.memory.items() if size]
            + [["total", _mib(budget.total)], ["usable", _mib(budget.usable)]],
            align="<>",
        ),
    ]
    if budget.traffic:
        rows = [[k, f"{t.count:,}", _mib(t.nbytes)] for k, t in budget.traffic.items()]
        table = [["collectives a step", "calls", "MiB a device"], *rows]
        parts += ["", *format_table(table, align="<>>")]
    share = budget.total / budget.usable
    verdict = f"{'fits' if budget.fits else 'does not fit'}: {share:.0%} of a device"
    return [*parts, "", verdict]


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.1f}"

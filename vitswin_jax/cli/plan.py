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
    from vitswin_jax.plan.pace import Pace

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
    add(
        "--slices",
        type=int,
        metavar="N",
        help="Plan for N slices of these TPUs, joined by the data centre's network, or for the "
        "other devices cut into N (default: mesh.slices).",
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
    if args.slices is not None and args.slices < 1:
        raise UserError(f"--slices={args.slices} must be 1 or more.")
    args.batch_size = args.batch_size if args.batch is None else args.batch
    config = read_config(args, also=("--topology", "--slices", "--batch", "--classes", "--json"))
    if args.slices is not None:
        config.mesh.slices = args.slices
    several = {"slices": config.mesh.slices} if config.mesh.slices else {}
    topology = open_topology(args.topology, **several)
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
    from vitswin_jax.plan.topology import TPUS

    axes = ", ".join(f"{axis} {size}" for axis, size in budget.mesh.items())
    devices = math.prod(budget.mesh.values())
    slices = budget.mesh.get("slice", 1)
    named = budget.topology.partition(":")[0] in TPUS  # of one slice; others' are all devices
    several = f"{slices} slices of " if slices > 1 and named else ""
    where = f"{several}{budget.topology}, {counted(devices, 'device')} ({kind}; {axes})"
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
    for traffic, of in (
        (budget.traffic, " inside a slice" if slices > 1 else ""),
        (budget.between_slices, " between slices"),
    ):
        if traffic:
            rows = [[k, f"{t.count:,}", _mib(t.nbytes)] for k, t in traffic.items()]
            table = [[f"collectives a step{of}", "calls", "MiB a device"], *rows]
            parts += ["", *format_table(table, align="<>>")]
    if budget.only_gradients is not None:
        parts += ["", _between(budget)]
    if budget.pace is not None:
        parts += ["", _pace(budget.pace)]
    share = budget.total / budget.usable
    verdict = f"{'fits' if budget.fits else 'does not fit'}: {share:.0%} of a device"
    return [*parts, "", verdict]


def _between(budget: Budget) -> str:
    """Returns the line that tells what leaves a slice."""
    if budget.only_gradients:
        return "between slices: only gradients, summed"
    others = [kind for kind in budget.between_slices or () if kind != "all-reduce"]
    what = ", ".join(others) or f"more than the gradients' {_mib(budget.gradients)} MiB"
    return (
        f"between slices: not only gradients, but also {what}; mixup and cutmix pair images of "
        "several slices, and Swin-MoE routes tokens over all"
    )


def _pace(pace: Pace) -> str:
    """Returns the line about the time of a step by published rates."""
    times = {"products": pace.products, "links": pace.links, "network": pace.network}
    each = ", ".join(f"{what} {1000 * time:.3g} ms" for what, time in times.items() if time)
    return f"communication: at most {pace.share:.0%} of a step by published rates ({each})"


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.1f}"

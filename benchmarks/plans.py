"""Writes the table of docs/plan.md: published recipes, compiled for slices of TPU v5e.

python benchmarks/plans.py [--smoke] > table.md

Needs the extra `tpu` and no TPU. Each plan is a `vitswin plan --json` in a process of its own.
With --smoke, one small recipe is planned for the devices of this machine instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

RECIPES = (
    "configs/vit.py:i1k,vit_base_patch16_224",
    "configs/vit.py:i1k,vit_large_patch16_224",
    "configs/swin.py:swin_base_patch4_window7_224",
    "configs/swin.py:swinv2_base_window8_256",
)
TOPOLOGIES = ("v5e:4x4", "v5e:16x16")
OVERRIDES = ("--config.model.scan=True", "--config.model.remat=full")
GIB, MIB = 2**30, 2**20
HEADER = (
    "model",
    "slice",
    "batch",
    "parameters",
    "FLOPs a step",
    "state GiB",
    "temporaries GiB",
    "total GiB",
    "fits",
    "collectives: calls, MiB",
)


def plan(recipe: str, *options: str) -> dict[str, Any]:
    """Returns the plan that `vitswin plan --json` prints."""
    command = [sys.executable, "-m", "vitswin_jax.cli", "plan", recipe, "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def row(budget: dict[str, Any]) -> list[str]:
    """Returns a plan as the cells below `HEADER`."""
    memory = budget["memory"]
    state = sum(memory[kind] for kind in ("parameters", "optimizer", "average", "teacher"))
    traffic = (budget["traffic"] or {}).items()
    return [
        f"`{budget['model']}`",
        budget["topology"],
        f"{budget['batch_size']}",
        f"{budget['parameters'] / 1e6:.1f} M",
        f"{budget['flops']:.2e}",
        f"{state / GIB:.2f}",
        f"{memory['temporaries'] / GIB:.2f}",
        f"{budget['total'] / GIB:.2f}",
        "yes" if budget["fits"] else "no",
        "; ".join(f"{kind} {t['count']}, {t['nbytes'] / MIB:.0f}" for kind, t in traffic),
    ]


def main() -> None:
    """Compiles every recipe for every slice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=OVERRIDES, help="keys of the config")
    parser.add_argument("--smoke", action="store_true", help="a small recipe, on this machine")
    args = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}", sep="\n")
    if args.smoke:
        cases = [("configs/digits.py:vit", "--config.model.depth=1")]
    else:
        cases = [
            (recipe, f"--topology={topology}", *args.overrides)
            for recipe in RECIPES
            for topology in TOPOLOGIES
        ]
    for case in cases:
        print(f"| {' | '.join(row(plan(*case)))} |", flush=True)


if __name__ == "__main__":
    main()

"""Writes the table of docs/plan.md: published recipes, compiled for slices of TPU v5e.

python benchmarks/plans.py > table.md

Needs the extra `tpu` and no TPU. Each plan is a `vitswin plan --json` in a process of its own.
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


def plan(recipe: str, topology: str, overrides: list[str]) -> dict[str, Any]:
    """Returns what `vitswin plan --json` says."""
    command = [sys.executable, "-m", "vitswin_jax.cli", "plan", recipe, "--json"]
    done = subprocess.run(
        [*command, f"--topology={topology}", *overrides], stdout=subprocess.PIPE, check=True
    )
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
    overrides = list(parser.parse_args().overrides)
    print(f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}", sep="\n")
    for recipe in RECIPES:
        for topology in TOPOLOGIES:
            print(f"| {' | '.join(row(plan(recipe, topology, overrides)))} |", flush=True)


if __name__ == "__main__":
    main()

"""Writes the tables of docs/plan.md: published recipes and large models, compiled for TPU slices.

python benchmarks/plans.py [--table large] [--only WORD] [--keep FOLDER] [--smoke] > table.md

Needs the extra `tpu` and no TPU. Each plan is a `vitswin plan --json` in a process of its own; with
--keep a plan that FOLDER has already is read from there. --only takes the rows that have WORD in
their recipe or their slices. With --smoke, one small recipe is planned for the devices of this
machine instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

SCANNED = ("--config.model.scan=True", "--config.model.remat=full")
SHARED = ("--config.mesh.data=1", "--config.mesh.fsdp=-1")
"""A slice shares one copy of the model: for those that no device can hold."""

PUBLISHED = dict.fromkeys(
    (
        "configs/vit.py:i1k,vit_base_patch16_224",
        "configs/vit.py:i1k,vit_large_patch16_224",
        "configs/swin.py:swin_base_patch4_window7_224",
        "configs/swin.py:swinv2_base_window8_256",
    ),
    SCANNED,
)
LARGE = {
    "configs/vit.py:i1k,vit_large_patch16_224": SCANNED,
    "configs/vit.py:i1k,vit_giant_patch14_224": SCANNED,
    "configs/vit.py:i1k,vit_7b_patch16_dinov3": (*SCANNED, *SHARED),
    "configs/swin_22k.py:swin_large_patch4_window7_224": SCANNED,
    "configs/vit.py:i1k,swinv2_cr_giant_224": (*SCANNED, *SHARED),
}
ONE = "--topology"
TABLES = {  # name -> recipes with their flags, and the devices
    "published": (PUBLISHED, [(ONE, "v5e:4x4"), (ONE, "v5e:16x16")]),
    "large": (
        LARGE,
        [
            (ONE, "v5e:16x16", "--slices", "2"),
            (ONE, "v5e:16x16"),
            (ONE, "v6e:16x16"),
            (ONE, "v5p:4x4x8"),
        ],
    ),
}
GIB, MIB = 2**30, 2**20
HEADER = (
    "model",
    "slice",
    "batch",
    "parameters",
    "FLOPs a step",
    "mesh",
    "state GiB",
    "temporaries GiB",
    "total GiB",
    "fits",
    "collectives: calls, MiB",
    "between slices",
    "communication",
    "compiled in, s",
)


def plan(recipe: str, *options: str, keep: Path | None = None) -> dict[str, Any]:
    """Returns the plan that `vitswin plan --json` prints, with its processor `seconds`."""
    kept = None
    if keep is not None:
        kept = keep / f"{re.sub(r'[^a-z0-9]+', '_', ' '.join((recipe, *options)).lower())}.json"
        if kept.exists():
            return json.loads(kept.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "vitswin_jax.cli", "plan", recipe, "--json", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    found["seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def row(budget: dict[str, Any]) -> list[str]:
    """Returns a plan as the cells below `HEADER`."""
    memory, mesh = budget["memory"], budget["mesh"]
    state = sum(memory[kind] for kind in ("parameters", "optimizer", "average", "teacher"))
    slices, pace = mesh.get("slice", 1), budget["pace"]
    sent = _traffic(budget["between_slices"])
    fits = next((f"with `{each['change']}`" for each in budget["tried"] if each["fits"]), "no")
    return [
        f"`{budget['model']}`",
        f"{slices} x {budget['topology']}" if slices > 1 else budget["topology"],
        f"{budget['batch_size']}",
        f"{budget['parameters'] / 1e6:.1f} M",
        f"{budget['flops']:.2e}",
        ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1),
        f"{state / GIB:.2f}",
        f"{memory['temporaries'] / GIB:.2f}",
        f"{budget['total'] / GIB:.2f}",
        "yes" if budget["fits"] else fits,
        _traffic(budget["traffic"]),
        sent + (": only gradients" if budget["only_gradients"] else ""),
        "" if pace is None else f"{pace['share']:.0%}",
        f"{budget['seconds']:.0f}",
    ]


def _traffic(traffic: dict[str, Any] | None) -> str:
    found = (traffic or {}).items()
    return "; ".join(f"{kind} {each['count']}, {each['nbytes'] / MIB:.3g}" for kind, each in found)


def main() -> None:
    """Compiles every recipe of a table for all its devices, and prints its rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="keys of the config, after those of a row")
    parser.add_argument("--table", choices=TABLES, default="published")
    parser.add_argument("--only", default="", metavar="WORD", help="the rows that have WORD")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="plans that are done already")
    parser.add_argument("--smoke", action="store_true", help="a small recipe, on this machine")
    args = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}", sep="\n")
    recipes, devices = TABLES[args.table]
    if args.smoke:
        cases = [("configs/digits.py:vit", "--config.model.depth=1")]
    else:
        cases = [
            (recipe, *where, *flags, *args.overrides)
            for where in devices
            for recipe, flags in recipes.items()
        ]
    for case in cases:
        if args.only in " ".join(case):
            print(f"| {' | '.join(row(plan(*case, keep=args.keep)))} |", flush=True)
    versions = (f"{name} {_version(name)}" for name in ("jax", "libtpu"))
    print(f"\n{', '.join(versions)}; seconds are a processor's.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()

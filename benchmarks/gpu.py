"""On a GPU: kernels checked, then ViT and Swin in bfloat16 beside timm, in a given time.

python benchmarks/gpu.py [--minutes 5] [--only TEXT ...] [--candidates] [--json FILE] [--dry-run]

Needs no network; what is not installed is named and left out. In this order, until the time is up:

1. each kernel's values and gradients on this GPU (benchmarks/gpu_kernels.py);
2. rows of models, training and inference: ours by default, XLA's attention, timm eager and
   compiled (benchmarks/gpu_rows.py). With --candidates, other forms of our programs (`nn.forms`)
   and flags of XLA too;
3. train.py end to end on generated JPEGs, beside its step's own rate; then the memory that
   `vitswin plan` plans, beside the peak seen (benchmarks/gpu_runs.py).

`--only "train.py"`, `--only plan` and `--only` with a part of a row's title measure nothing else.

The contestants of a row compile side by side in processes of their own, as many as the GPU's memory
holds; then each is timed alone: by queued calls (the last is waited for) and by single calls. Rows
whose outputs differ from ours by more than rounding are marked. MFU is of the chip's bfloat16 peak.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_rows import (
    CANDIDATES,
    END_TO_END,
    PLANS,
    ROWS,
    SWIN_T,
    Row,
    Run,
    table,
    table_of_runs,
)

from vitswin_jax.benchmark.cases import Case, write_case
from vitswin_jax.benchmark.runner import TOLERANCE, Contestant, Worker, differences
from vitswin_jax.core.types import UserError


class Clock:
    """The time that is left, in seconds; when it is up, running workers are killed."""

    def __init__(self, seconds: float) -> None:
        """Starts."""
        self._end = time.monotonic() + seconds
        self._processes: list[subprocess.Popen] = []
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True
        self._timer.start()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def watch(self, process: subprocess.Popen) -> None:
        """Has a process killed when the time is up."""
        self._processes.append(process)

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()


def groups(rows: Sequence[Any], memory: float) -> list[list[Any]]:
    """Returns neighbouring rows or runs together, as many as `memory` gigabytes hold at once."""
    found: list[list[Any]] = []
    taken = math.inf
    for row in rows:
        needs = row.needs
        if taken + needs > memory:
            found.append([])
            taken = 0.0
        found[-1].append(row)
        taken += needs
    return found


def start(row: Row, folder: Path, clock: Clock) -> dict[str, Worker | str]:
    """Starts a row's contestants side by side; returns each one's worker, or why it has none."""
    jobs = {
        form: write_case(row.case, form, _folder(folder, form))
        for form in {one.reads or "timm" for one in row.contestants}
    }

    def begin(one: Contestant) -> Worker | str:
        if not one.is_there():
            return f"needs {one.kind}, which is not installed"
        try:
            return Worker(one, jobs[one.reads or "timm"], folder, watch=clock.watch)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(row.contestants)) as pool:
        workers = list(pool.map(begin, row.contestants))
    return {one.name: worker for one, worker in zip(row.contestants, workers, strict=True)}


def _folder(folder: Path, form: str) -> Path:
    (folder / form).mkdir(parents=True)
    return folder / form


def time_worker(worker: Worker, *, seconds: float) -> dict[str, Any]:
    """Times a worker alone: five rounds of queued calls, then single ones."""
    single = worker.ask(calls=2)["wall"]
    calls = max(2, math.ceil(seconds / 6 / single))
    queued = [worker.ask(queued=calls)["wall"] for _ in range(5)]
    alone = worker.ask(calls=calls)["wall"]
    return {
        "queued_ms": [round(1e3 * x, 3) for x in queued],
        "single_ms": round(1e3 * alone, 3),
        **worker.facts,
        "peak_bytes": worker.ask()["peak_bytes"],
    }


def measure(
    row: Row, workers: Mapping[str, Worker | str], *, seconds: float, trace: Path | None
) -> dict[str, Any]:
    """Times a row's workers, one at a time; returns the row's line."""
    there = {name: one for name, one in workers.items() if isinstance(one, Worker)}
    line: dict[str, Any] = {"title": row.case.title, "case": dataclasses.asdict(row.case)}
    found: dict[str, Any] = {name: str(why) for name, why in workers.items() if name not in there}
    for name, worker in there.items():
        try:
            found[name] = time_worker(worker, seconds=seconds)
            if trace is not None and name == row.contestants[0].name:
                worker.ask(trace=str(trace / row.case.title.replace(", ", "-").replace(" ", "_")))
        except UserError as error:
            found[name] = str(error)
    outputs = {name: worker.outputs for name, worker in there.items() if worker.has_outputs}
    first = row.contestants[0].name
    for one in row.contestants:
        if first in outputs and one.name in outputs and isinstance(found[one.name], dict):
            pair = [row.contestants[0], one]
            distance = differences(row.case, pair, outputs, strict=False)[one.name]
            right = distance is not None and distance <= TOLERANCE[row.case.dtype]
            found[one.name] |= {"difference": distance, "right": right}
    return line | {"flops": row.case.flops, "contestants": found}


def run_script(clock: Clock, name: str, *arguments: str, echo: bool = True) -> list[dict[str, Any]]:
    """Runs a script of this folder in another process; returns its lines, printed if `echo`."""
    script = Path(__file__).with_name(name)
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
    )
    clock.watch(process)
    assert process.stdout is not None  # as it is a pipe
    lines = []
    for text in process.stdout:
        if echo:
            print(text, end="", flush=True)
        lines.append(json.loads(text))
    if process.wait():
        print(f"{name}: ended with {process.returncode}", flush=True)
        # Killed where the time was up; else it broke off, and its checks are not done.
        lines.append({"check": name, "right": process.returncode < 0})
    return lines


def run_kernels(clock: Clock, part: str, *, smoke: bool) -> list[dict[str, Any]]:
    """Runs a part of gpu_kernels.py; returns its lines."""
    return run_script(clock, "gpu_kernels.py", "--part", part, *["--smoke"] * smoke)


def measure_models(
    rows: Sequence[Row], clock: Clock, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Checks kernels and times rows of models; prints and returns their lines."""
    background = concurrent.futures.ThreadPoolExecutor(1)
    checks = None
    if args.kernels:  # while the first contestants compile
        checks = background.submit(run_kernels, clock, "checks", smoke=args.dry_run)
    measured = []
    for group in groups(rows, args.memory):
        if not _has_time(group, clock, args):
            continue
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(len(group)))
            began = [
                pool.submit(start, row, Path(folder) / str(i), clock) for i, row in enumerate(group)
            ]
            workers = [one.result() for one in began]
            if checks is not None:
                checks.result()
            print(f"{clock.left:.0f} s left", flush=True)
            for row, theirs in zip(group, workers, strict=True):
                line = measure(row, theirs, seconds=args.seconds, trace=args.trace)
                measured.append(line)
                print(*table([line]), sep="\n", flush=True)
                for worker in theirs.values():
                    if isinstance(worker, Worker):
                        worker.close()
    return [*(checks.result() if checks is not None else []), *measured]


def measure_runs(runs: Sequence[Run], clock: Clock, args: argparse.Namespace) -> list[dict]:
    """Measures whole runs one at a time, plans side by side; prints and returns their lines."""

    def measure_run(run: Run) -> list[dict[str, Any]]:
        own = [f"--part={run.part}", f"--model={run.model}", f"--batch-size={run.batch_size}"]
        own += [f"--patience={clock.left - 5:.0f}", *["--smoke"] * args.dry_run]
        return run_script(clock, "gpu_runs.py", *own, echo=False)

    lines: list[dict[str, Any]] = []
    alone = [[run] for run in runs if run.part == "train.py"]
    for group in [*alone, *groups([run for run in runs if run.part == "plan"], args.memory)]:
        if not _has_time(group, clock, args):
            continue
        with concurrent.futures.ThreadPoolExecutor(len(group)) as pool:
            found = list(itertools.chain(*pool.map(measure_run, group)))
        print(f"{clock.left:.0f} s left", *table_of_runs(found), sep="\n", flush=True)
        lines += found
    return lines


def parse_arguments() -> argparse.Namespace:
    """Returns the flags; kernels are checked unless only some titles are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=5.0)
    add("--only", nargs="+", metavar="TEXT", help="rows and runs whose title has one of these")
    add("--candidates", action="store_true", help="other forms and flags in place of the rows")
    add("--kernels", action=argparse.BooleanOptionalAction, help="(default: without --only)")
    add("--memory", type=float, default=68.0, metavar="GB", help="of the GPU, for all contestants")
    add("--seconds", type=float, default=2.0, help="of each contestant's timing")
    add("--trace", type=Path, metavar="FOLDER", help="profiles of each row's first contestant")
    add("--json", type=Path, metavar="FILE", help="a line for each check, each row and each run")
    add("--dry-run", "--smoke", action="store_true", help="tiny models, on any device")
    args = parser.parse_args()
    if args.kernels is None:
        args.kernels = args.only is None
    return args


def main() -> int:
    """Runs what the flags ask for; returns 1 where a kernel or an output is wrong."""
    args = parse_arguments()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    clock = Clock(60 * args.minutes)
    rows = _asked(CANDIDATES if args.candidates else ROWS, args.only)
    runs = _asked(() if args.candidates else (*END_TO_END, *PLANS), args.only)
    if not rows and not runs:
        return _refuse(f"has no row or run with {' or '.join(args.only)} in its title.")
    if args.dry_run:
        rows = [_tiny(row) for row in rows[1:3]]
        runs = list(dict.fromkeys([*runs[:1], *runs[-1:]]))
    elif (found := _backend()) != "gpu":
        return _refuse(f"needs a GPU, and JAX finds none here, but {found}; or --dry-run.")
    lines = measure_models(rows, clock, args)
    lines += measure_runs(runs, clock, args)
    if args.kernels and clock.left > 20:
        lines += run_kernels(clock, "lengths", smoke=args.dry_run)
    if args.json:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        args.json.write_text(text, encoding="utf-8")
    return int(any(map(_is_wrong, lines)))


def _asked(rows: Sequence[Any], only: Sequence[str] | None) -> list[Any]:
    """Returns the rows whose title has one of `only`, all of them for None."""
    return [row for row in rows if only is None or any(text in row.title for text in only)]


def _has_time(group: Sequence[Row | Run], clock: Clock, args: argparse.Namespace) -> bool:
    """Returns whether there is time for a group of rows, or prints that there is none."""
    if clock.left >= 30 or args.dry_run:
        return True
    print(f"no time for {', '.join(row.title for row in group)}", flush=True)
    return False


def _is_wrong(line: Mapping[str, Any]) -> bool:
    """Returns whether a check, or the outputs of a row's contestant, were found to be wrong."""
    ones = [one for one in line.get("contestants", {}).values() if isinstance(one, Mapping)]
    return not all(one.get("right", True) for one in [line, *ones])


def _backend() -> str:
    """Returns JAX's platform; another process asks, so that this one leaves the GPU's memory."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _refuse(text: str) -> int:
    print(f"benchmarks/gpu.py {text}", file=sys.stderr)
    return 1


def _tiny(row: Row) -> Row:
    name = SWIN_T if "swin" in row.case.name else "vit_tiny_patch16_224"
    case = Case(name, row.case.task, 2, 32, "float32")
    return Row(case, row.contestants, 0.1)


if __name__ == "__main__":
    sys.exit(main())

"""On a GPU: kernels checked, then ViT and Swin in bfloat16 beside timm, in a given time.

python benchmarks/gpu.py [--minutes 5] [--only TEXT ...] [--candidates] [--json FILE] [--dry-run]

Needs no network; what is not installed is named and left out. In this order, until the time is up:

1. each kernel's values and gradients on this GPU (benchmarks/gpu_kernels.py);
2. rows of models, training and inference: ours by default, XLA's attention, timm eager and
   compiled. With --candidates, other forms of our programs (`nn.forms`) and flags of XLA too.

The contestants of a row compile side by side in processes of their own, as many as the GPU's memory
holds; then each is timed alone: by queued calls (the last is waited for) and by single calls. Rows
whose outputs differ from ours by more than rounding are marked. MFU is of the chip's bfloat16 peak.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitswin_jax.benchmark.cases import Case, write_case
from vitswin_jax.benchmark.peaks import peak_flops
from vitswin_jax.benchmark.runner import TOLERANCE, Contestant, Worker, differences
from vitswin_jax.cli.table import format_table
from vitswin_jax.core.types import UserError

TIMM = (Contestant("timm", "timm"), Contestant("timm compiled", "timm-compiled"))


def ours(name: str, **variant: Any) -> Contestant:
    """Returns a contestant of ours; `form_x` is a field of `Forms`, `flag_x` an option of XLA."""
    return Contestant(
        name,
        "ours",
        variant={
            key.replace("form_", "form.", 1).replace("flag_", "flag.xla_gpu_", 1): value
            for key, value in variant.items()
        },
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """A case, who runs it, and about how much memory each contestant takes."""

    case: Case
    contestants: tuple[Contestant, ...]
    gigabytes: float


def case(name: str, task: str, batch_size: int) -> Case:
    """Returns a case in bfloat16."""
    return Case(name, task, batch_size, dtype="bfloat16")


VIT_B, VIT_L = "vit_base_patch16_224", "vit_large_patch16_224"
SWIN_T, SWIN_B = "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"
SWINV2_B = "swinv2_base_window8_256"
DEFAULTS = (ours("ours"), *TIMM)
ROWS = (
    Row(case(VIT_B, "train", 128), DEFAULTS, 12),
    Row(case(VIT_B, "inference", 128), DEFAULTS, 3),
    Row(case(SWIN_T, "train", 128), DEFAULTS, 9),
    Row(case(SWIN_T, "inference", 128), DEFAULTS, 3),
    Row(case(SWIN_B, "train", 64), DEFAULTS, 12),
    Row(case(SWINV2_B, "train", 64), DEFAULTS, 16),
    Row(case(VIT_L, "train", 64), DEFAULTS, 18),
    Row(case(VIT_L, "inference", 64), DEFAULTS, 4),
    Row(case(SWIN_B, "inference", 64), DEFAULTS, 3),
    Row(case(SWINV2_B, "inference", 64), DEFAULTS, 4),
)

OFF = {"flag_enable_triton_gemm": False}
LT = {"flag_enable_cublaslt": True}
BEFORE = {
    "form_products": "keep_input",
    "form_norm": "keep_standard",
    "form_patches": "convolution",
}
VIT_TRAIN = (
    ours("ours"),
    ours("apart", form_qkv="apart"),
    ours("bias product", form_bias_gradients="product"),
    ours("norm keeps input", form_norm="keep_input"),
    ours("gelu keeps input", form_gelu="keep_input"),
    ours("no triton gemm", **OFF),
    ours("cublaslt", **OFF, **LT),
    ours("norm keeps standard", form_norm="keep_standard"),
    ours("convolution", form_patches="convolution"),
    ours(
        "all", form_qkv="apart", form_bias_gradients="product", form_norm="keep_input", **OFF, **LT
    ),
    ours("products keep input", form_products="keep_input"),
    ours("triton multi-output", flag_unsupported_enable_triton_multi_output_fusion=True),
    ours("block level", flag_experimental_enable_fusion_block_level_rewriter=True),
)
CANDIDATES = (
    Row(case(VIT_B, "train", 64), (*VIT_TRAIN[:7], TIMM[1]), 6),
    Row(
        case(VIT_B, "inference", 128),
        (
            ours("ours"),
            ours("apart", form_qkv="apart"),
            ours("no triton gemm", **OFF),
            ours("cublaslt", **OFF, **LT),
            ours("apart, cublaslt", form_qkv="apart", **OFF, **LT),
            ours("convolution", form_patches="convolution"),
            *TIMM,
        ),
        3,
    ),
    Row(
        case(SWIN_T, "train", 64),
        (
            ours("ours"),
            ours("bias product", form_bias_gradients="product"),
            ours("norm keeps input", form_norm="keep_input"),
            ours("norm keeps standard", form_norm="keep_standard"),
            ours("gelu keeps input", form_gelu="keep_input"),
            ours("no triton gemm", **OFF),
            ours("cublaslt", **OFF, **LT),
            ours("before", **BEFORE),
            TIMM[1],
        ),
        5,
    ),
    Row(case(VIT_B, "train", 64), (VIT_TRAIN[0], *VIT_TRAIN[7:]), 6),
    Row(
        case(SWIN_T, "inference", 128),
        (
            ours("ours"),
            ours("no triton gemm", **OFF),
            ours("cublaslt", **OFF, **LT),
            TIMM[1],
        ),
        3,
    ),
)


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


def groups(rows: Sequence[Row], memory: float) -> list[list[Row]]:
    """Returns neighbouring rows together, as many as `memory` gigabytes hold at once."""
    found: list[list[Row]] = []
    taken = math.inf
    for row in rows:
        needs = row.gigabytes * len(row.contestants)
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


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as text; "of ours" is a contestant's time over the first one's."""
    cells: list[tuple[str, ...]] = [
        ("", "ms", "single", "ours / it", "images/s", "MFU", "GiB", "first, s", "difference")
    ]
    for line in lines:
        cells.append((line["title"], *8 * ("",)))
        base = None
        for name, one in line["contestants"].items():
            if isinstance(one, str):
                cells.append((f"  {name}: {one[:90]}", *8 * ("",)))
                continue
            ms = statistics.median(one["queued_ms"])
            base = base or ms
            peak = peak_flops(one["device"], line["case"]["dtype"])
            distance, mark = one.get("difference"), "" if one.get("right", True) else " WRONG"
            cells.append(
                (
                    f"  {name}",
                    f"{ms:.2f}",
                    f"{one['single_ms']:.2f}",
                    f"{base / ms:.3f}",
                    f"{1e3 * line['case']['batch_size'] / ms:.0f}",
                    "-" if peak is None else f"{line['flops'] / ms * 1e3 / peak:.3f}",
                    "-" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**30:.2f}",
                    f"{one['first_s']:.1f}",
                    "-" if distance is None else f"{distance:.2g}{mark}",
                )
            )
    return "\n".join(format_table(cells, align="<" + ">" * 8))


def run_kernels(clock: Clock, part: str, *, smoke: bool) -> list[dict[str, Any]]:
    """Runs a part of gpu_kernels.py in a process of its own; returns its lines."""
    script = Path(__file__).with_name("gpu_kernels.py")
    process = subprocess.Popen(
        [sys.executable, str(script), "--part", part, *(["--smoke"] if smoke else [])],
        stdout=subprocess.PIPE,
        text=True,
    )
    clock.watch(process)
    assert process.stdout is not None  # as it is a pipe
    lines = []
    for text in process.stdout:
        print(text, end="", flush=True)
        lines.append(json.loads(text))
    if process.wait():
        print(f"gpu_kernels.py: ended with {process.returncode}", flush=True)
        # Killed where the time was up; else it broke off, and its checks are not done.
        lines.append({"check": script.name, "right": process.returncode < 0})
    return lines


def main() -> int:
    """Runs what the flags ask for; returns 1 where a kernel or an output is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=5.0)
    add("--only", nargs="+", default=[""], metavar="TEXT", help="rows whose title has one of these")
    add("--candidates", action="store_true", help="other forms and flags in place of the rows")
    add("--kernels", action=argparse.BooleanOptionalAction, default=True)
    add("--memory", type=float, default=68.0, metavar="GB", help="of the GPU, for all contestants")
    add("--seconds", type=float, default=2.0, help="of each contestant's timing")
    add("--trace", type=Path, metavar="FOLDER", help="profiles of each row's first contestant")
    add("--json", type=Path, metavar="FILE", help="a line for each check and each row")
    add("--dry-run", "--smoke", action="store_true", help="tiny models, on any device")
    args = parser.parse_args()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    clock = Clock(60 * args.minutes)
    rows = CANDIDATES if args.candidates else ROWS
    rows = [row for row in rows if any(text in row.case.title for text in args.only)]
    if args.dry_run:
        rows = [_tiny(row) for row in rows[1:3]]
    elif (found := _backend()) != "gpu":
        return _refuse(f"needs a GPU, and JAX finds none here, but {found}; or --dry-run.")
    background = concurrent.futures.ThreadPoolExecutor(1)
    checks = None
    if args.kernels:  # while the first contestants compile
        checks = background.submit(run_kernels, clock, "checks", smoke=args.dry_run)
    measured = []
    for group in groups(rows, args.memory):
        if clock.left < 30 and not args.dry_run:
            print(f"no time for {', '.join(row.case.title for row in group)}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            with concurrent.futures.ThreadPoolExecutor(len(group)) as pool:
                began = [
                    pool.submit(start, row, Path(folder) / str(i), clock)
                    for i, row in enumerate(group)
                ]
                workers = [one.result() for one in began]
            if checks is not None:
                checks.result()
            print(f"{clock.left:.0f} s left", flush=True)
            for row, theirs in zip(group, workers, strict=True):
                line = measure(row, theirs, seconds=args.seconds, trace=args.trace)
                measured.append(line)
                print(table([line]), flush=True)
                for worker in theirs.values():
                    if isinstance(worker, Worker):
                        worker.close()
    lines = [*(checks.result() if checks is not None else []), *measured]
    if args.kernels and clock.left > 20:
        lines += run_kernels(clock, "lengths", smoke=args.dry_run)
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return int(any(map(_is_wrong, lines)))


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

"""Time and size of exported files: float32, unfused, int8; by onnxruntime and OpenVINO.

python benchmarks/deploy.py [--model NAME ...] [--batch-size 1 8] [--threads 2] [--json FILE]

Each model has random weights and is exported as `vitswin export` does it: float32, `--quantize
int8` (weights) and `--quantize int8-qdq` (products), whose ranges are of the two photos and the
noise on which exports are compared. "unfused" is float32 with layer norms, softmaxes and GELUs in
the operations of JAX's program, which `export.fused` replaces. In each round every file of a
runtime runs once on the same images, in turns; the table has the median and the quartiles of a
call. `--threads` is of each runtime. OpenVINO takes part if it is installed. Accuracy is another
question, which `vitswin export --dataset` answers. The table is in docs/export.md.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime

from vitswin_jax import create_model
from vitswin_jax.benchmark.cases import random_variables
from vitswin_jax.export import fused
from vitswin_jax.export.calibrated import export_calibrated
from vitswin_jax.export.onnx import export_onnx
from vitswin_jax.export.program import make_program, sample_images

try:
    import openvino
except ImportError:
    openvino = None

MODELS = ("vit_small_patch16_224", "swin_tiny_patch4_window7_224")
KINDS = ("float32", "unfused", "int8", "int8-qdq")
SMOKE = {"img_size": 32, "depth": 1, "num_classes": 10}

Run = Callable[[np.ndarray], object]
Key = tuple[str, str]
"""A runtime and one of KINDS."""


def write(kind: str, name: str, fields: dict[str, int], path: Path) -> None:
    """Exports a model in one of KINDS."""
    model = create_model(name, **fields)
    program = make_program(model, random_variables(model), quantize=kind == "int8")
    if kind == "int8-qdq":
        export_calibrated(path, program, sample_images(program))
    elif kind == "unfused":
        with mock.patch.multiple(fused, handler_of=lambda inner: None, with_softmax=list):
            export_onnx(path, program)
    else:
        export_onnx(path, program)


def open_onnxruntime(path: Path, threads: int) -> Run:
    """Returns a file as onnxruntime runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def open_openvino(path: Path, threads: int) -> Run:
    """Returns a file as OpenVINO runs it, in float32 where the file has no 8-bit products."""
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    return lambda images: compiled([images])


def measure(runs: dict[Key, Run], images: np.ndarray, rounds: int) -> dict[Key, list[float]]:
    """Returns the milliseconds of each run's calls, in turns after one call that is not counted."""
    times: dict[Key, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(images)
            if number:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def processor() -> str:
    """Returns the name of the processor and its instructions for 8-bit products."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    has = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"{facts.get('model name', platform.machine())}, {', '.join(has) or 'no VNNI'}"


def rows_of(
    name: str, args: argparse.Namespace, runtimes: dict[str, Callable[[Path, int], Run]]
) -> list[dict[str, object]]:
    """Exports a model, runs its files in turns, prints and returns the rows of the table."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in KINDS}
        for kind, path in files.items():
            write(kind, name, SMOKE if args.smoke else {}, path)
        opened = {
            (runtime, kind): start(path, args.threads)
            for runtime, start in runtimes.items()
            for kind, path in files.items()
        }
        side = SMOKE["img_size"] if args.smoke else create_model(name).img_size
        for batch in args.batch_size:
            shape = (batch, side, side, 3)
            images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            times = {}
            for runtime in runtimes:  # one after the other: idle threads of one delay the other's
                own = {key: run for key, run in opened.items() if key[0] == runtime}
                times |= measure(own, images, args.rounds)
            for (runtime, kind), found in times.items():
                low, middle, high = np.percentile(found, (25, 50, 75))
                share = middle / np.median(times[runtime, "float32"])
                size = files[kind].stat().st_size / 1e6
                print(
                    f"| `{name}` | {batch} | {runtime} | {kind} | {size:.1f} | "
                    f"{middle:.1f} ({low:.1f} to {high:.1f}) | {share:.2f} |",
                    flush=True,
                )
                row = {"model": name, "batch": batch, "runtime": runtime, "file": kind}
                rows.append({**row, "ms": found})
    return rows


def main() -> None:
    """Exports all, runs them in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runtime", nargs="+", choices=("onnxruntime", "OpenVINO"))
    parser.add_argument("--json", type=Path, help="writes every measurement")
    parser.add_argument("--smoke", action="store_true", help="a ViT of one block at 32 px")
    args = parser.parse_args()
    if args.smoke:
        args.model, args.batch_size, args.rounds = ["vit_tiny_patch16_224"], [1], 2
    versions = [f"onnxruntime {onnxruntime.__version__}"]
    runtimes = {"onnxruntime": open_onnxruntime}
    if openvino is not None:
        versions.append(f"OpenVINO {openvino.__version__.split('-')[0]}")
        runtimes["OpenVINO"] = open_openvino
    if args.runtime:
        runtimes = {name: start for name, start in runtimes.items() if name in args.runtime}
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{processor()}; {args.threads} threads; {', '.join(versions)}; {load}\n")
    print("| model | batch | runtime | file | MB | ms (quartiles) | of float32 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = [row for name in args.model for row in rows_of(name, args, runtimes)]
    if args.json:
        args.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

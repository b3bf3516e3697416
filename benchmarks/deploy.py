"""Exported files: time, size, largest error and accuracy; by onnxruntime and OpenVINO.

python benchmarks/deploy.py [--runs WORKDIR ...] [--model NAME ...] [--batch-size 1 8] [--threads 2]
                            [--rounds 30] [--runtime NAME ...] [--json FILE]

The first table is of models with random weights, exported as `vitswin export` does it: float32, and
each kind of `--quantize`; ranges of activations are of the two photos and the noise on which
exports are compared. "unfused" is float32 with layer norms, softmaxes and GELUs in the operations
of JAX's program, which `export.fused` replaces. In each round every file of a runtime runs once on
the same images, in turns; the table has the median and the quartiles of a call. The error is the
largest difference of a logit from JAX's float32 program on these images, as a share of the logits'
standard deviation. `--threads` is of each runtime. OpenVINO takes part if it is installed.

The second table, with `--runs`, is of trained weights: top-1 on the test split of the dataset of
the training, with ranges from up to 256 images of the training split. docs/export.md has both.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnxruntime
from machine import facts, processor

from vitswin_jax import create_model, save_pretrained
from vitswin_jax.benchmark.cases import random_variables
from vitswin_jax.cli.calibration import calibration_images
from vitswin_jax.cli.evaluate import open_evaluated
from vitswin_jax.export import fused
from vitswin_jax.export.calibrated import export_calibrated
from vitswin_jax.export.kinds import CALIBRATED, KINDS, WEIGHTS
from vitswin_jax.export.onnx import export_onnx
from vitswin_jax.export.program import Program, make_program, sample_images
from vitswin_jax.weights.open import open_pretrained

try:
    import openvino
except ImportError:
    openvino = None

MODELS = ("vit_small_patch16_224", "swin_tiny_patch4_window7_224")
FILES = ("float32", "unfused", *KINDS)
SMOKE = {"img_size": 32, "depth": 1, "num_classes": 10}

Run = Callable[[np.ndarray], np.ndarray]
Key = tuple[str, str]
"""A runtime and one of FILES."""
Runtimes = dict[str, Callable[[Path, int], Run]]
Make = Callable[..., Program]


def write(kind: str, make: Make, calibration: np.ndarray, path: Path) -> None:
    """Exports the program that `make` returns, as one of FILES."""
    program = make(quantize=kind == WEIGHTS)
    if kind in CALIBRATED:
        export_calibrated(path, program, calibration, kind=kind)
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
    return lambda images: session.run(None, {"images": images})[0]


def open_openvino(path: Path, threads: int) -> Run:
    """Returns a file as OpenVINO runs it, in float32 where the file has no 8-bit products."""
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    return lambda images: compiled([images])[0]


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


def described_processor() -> str:
    """Returns the name of the processor and, where known, its instructions for 8-bit products."""
    if not (known := facts()):
        return processor()
    flags = known.get("flags", "").split()
    has = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"{processor()}, {', '.join(has) or 'no VNNI'}"


def error(run: Run, images: np.ndarray, want: np.ndarray) -> float:
    """Returns the largest difference of a logit, as a share of the logits' deviation."""
    return float(np.abs(run(images) - want).max() / want.std())


def rows_of(name: str, args: argparse.Namespace, runtimes: Runtimes) -> list[dict[str, object]]:
    """Exports a model, runs its files in turns, prints and returns the rows of the table."""
    rows: list[dict[str, object]] = []
    model = create_model(name, **(SMOKE if args.smoke else {}))
    make = functools.partial(make_program, model, random_variables(model))
    program = make()
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in FILES}
        for kind, path in files.items():
            write(kind, make, sample_images(program), path)
        opened = {
            (runtime, kind): start(path, args.threads)
            for runtime, start in runtimes.items()
            for kind, path in files.items()
        }
        for batch in args.batch_size:
            shape = (batch, *program.image_shape)
            images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            want, times = program.runner()(images), {}
            for runtime in runtimes:  # one after the other: idle threads of one delay the other's
                own = {key: run for key, run in opened.items() if key[0] == runtime}
                times |= measure(own, images, args.rounds)
            for (runtime, kind), found in times.items():
                low, middle, high = np.percentile(found, (25, 50, 75))
                share = middle / np.median(times[runtime, "float32"])
                size = files[kind].stat().st_size / 1e6
                apart = error(opened[runtime, kind], images, want)
                print(
                    f"| `{name}` | {batch} | {runtime} | {kind} | {size:.1f} | {apart:.2g} | "
                    f"{middle:.1f} ({low:.1f} to {high:.1f}) | {share:.2f} |",
                    flush=True,
                )
                row = {"model": name, "batch": batch, "runtime": runtime, "file": kind}
                rows.append({**row, "error": apart, "ms": found})
    return rows


def accuracies_of(
    weights: str, args: argparse.Namespace, runtimes: Runtimes
) -> list[dict[str, object]]:
    """Exports trained weights, runs their files on the test split; prints and returns the rows."""
    rows: list[dict[str, object]] = []
    trained = open_pretrained(weights)
    make = functools.partial(
        make_program, trained.model, trained.variables, metadata=trained.metadata
    )
    program = make()
    unset = dict.fromkeys(("dataset", "calibrate", "split", "data_dir"))
    options = {**unset, "weights": weights, "calibrate_split": "train", "outside_files": False}
    asked = argparse.Namespace(**options)
    calibration = program.take(calibration_images(asked, program)[1])
    source, preprocess = open_evaluated(asked, trained.metadata), program.preprocess
    records = [source[i] for i in range(len(source))]
    pixels = [preprocess.image(preprocess.decode(record["image"])) for record in records]
    images, labels = program.take(np.stack(pixels)), np.array([r["label"] for r in records])
    want = program.runner()(images)
    with tempfile.TemporaryDirectory() as folder:
        for kind in FILES:
            path = Path(folder) / f"{kind}.onnx"
            write(kind, make, calibration, path)
            for runtime, start in runtimes.items():
                run = start(path, args.threads)
                top1 = 100 * float((run(images).argmax(-1) == labels).mean())
                apart, size = error(run, images, want), path.stat().st_size / 1e6
                row = {"run": Path(weights).name, "runtime": runtime, "file": kind}
                print(
                    f"| {row['run']} | {runtime} | {kind} | {size:.2f} | {apart:.2g} | "
                    f"{top1:.2f} % |",
                    flush=True,
                )
                rows.append({**row, "error": apart, "top1": top1})
    return rows


def arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--runs", nargs="+", default=[], help="trained weights, for the accuracy")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runtime", nargs="+", choices=("onnxruntime", "OpenVINO"))
    parser.add_argument("--json", type=Path, help="writes every measurement")
    parser.add_argument("--smoke", action="store_true", help="a ViT of one block at 32 px")
    return parser.parse_args()


def print_tables(args: argparse.Namespace, runtimes: Runtimes) -> None:
    """Prints both tables, and writes them where `--json` says."""
    print("| model | batch | runtime | file | MB | error | ms (quartiles) | of float32 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = [row for name in args.model for row in rows_of(name, args, runtimes)]
    if args.runs:
        print("\n| run | runtime | file | MB | error | top-1 |")
        print("| --- | --- | --- | --- | --- | --- |")
        rows += [row for weights in args.runs for row in accuracies_of(weights, args, runtimes)]
    if args.json:
        args.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


def main() -> None:
    """Exports all, runs them in turns and prints the tables."""
    args = arguments()
    versions = [f"onnxruntime {onnxruntime.__version__}"]
    runtimes: Runtimes = {"onnxruntime": open_onnxruntime}
    if openvino is not None:
        versions.append(f"OpenVINO {openvino.__version__.split('-')[0]}")
        runtimes["OpenVINO"] = open_openvino
    if args.runtime:
        runtimes = {name: start for name, start in runtimes.items() if name in args.runtime}
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{described_processor()}; {args.threads} threads; {', '.join(versions)}; {load}\n")
    if not args.smoke:
        print_tables(args, runtimes)
        return
    args.model, args.batch_size, args.rounds = ["vit_tiny_patch16_224"], [1], 2
    with tempfile.TemporaryDirectory() as folder:
        args.runs = [str(Path(folder) / "digits.safetensors")]
        model = create_model(args.model[0], **SMOKE)
        facts = {"dataset": "digits", "test_split": "test[:16]"}
        save_pretrained(
            args.runs[0], model, random_variables(model), metadata={"provenance": facts}
        )
        print_tables(args, runtimes)


if __name__ == "__main__":
    main()

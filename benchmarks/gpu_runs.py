"""A run of train.py beside its own step: is it bound by its input, and is its memory as planned?

python benchmarks/gpu_runs.py --part plan|train.py [--model NAME] [--batch-size N] [--smoke]

`plan` compiles the step as `vitswin plan` does, then runs it on one batch of random pixels: bytes
planned and the peak seen, and the step's own images/s. `train.py` adds what the whole command
reaches on generated JPEGs of about 500x375 with a data worker per core, the share of its time that
it waits for input, and what the workers load without a device. Prints a line of JSON per part. The
recipe is configs/folder.py in bfloat16. Needs no network.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from input import write_images
from ml_collections import ConfigDict

from vitswin_jax.data.augment.transforms import TrainTransform
from vitswin_jax.data.pipeline import make_train_iterator
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.plan.budget import batch_layout, describe_data, make_budget
from vitswin_jax.plan.topology import open_topology
from vitswin_jax.train.run.compile import make_step
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.run.recipe import read_recipe
from vitswin_jax.train.state import create_state

ROOT = Path(__file__).parents[1]
DISTINCT, FILES = 64, 2048
STEPS_PER_ROW = 20
"""Of metrics.jsonl."""
BUFFERED = 8
"""Batches that a data worker has at most ahead of its run."""


def flags_of(args: argparse.Namespace) -> list[str]:
    """Returns the recipe of the measured run and its keys, as the command line has them."""
    keys = {
        "data.batch_size": args.batch_size,
        "data.eval_batch_size": args.batch_size,
        "data.workers": args.workers,
        "model.dtype": args.dtype,
        "optim.total_steps": 1_000_000,
        "optim.epochs": 0.0,
        "optim.warmup_epochs": 0.0,
        "optim.warmup_steps": 100,
        "run.log_steps": args.steps_per_row,
        "run.eval_epochs": 0.0,
        "run.eval_steps": 1_000_000,
        "run.checkpoint_epochs": 0.0,
        "run.checkpoint_steps": 1_000_000,
    }
    if args.smoke:
        keys |= {"model.img_size": args.img_size, "model.depth": 1}
    recipe = f"--config={ROOT}/configs/folder.py:{args.model}"
    return [recipe, *(f"--config.{key}={value}" for key, value in keys.items())]


def config_of(args: argparse.Namespace) -> ConfigDict:
    """Returns the config of the measured run."""
    recipe, *keys = flags_of(args)
    return read_recipe(recipe.removeprefix("--config="), keys)


def random_batch(layout: dict[str, jax.ShapeDtypeStruct], *, classes: int) -> dict[str, jax.Array]:
    """Returns a batch of random pixels and labels, of which every row counts."""
    key = jax.random.key(0)

    def draw(name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        if name == "mask":
            return jnp.ones(like.shape, like.dtype)
        high = 256 if name == "image" else classes
        return jax.random.randint(key, like.shape, 0, high, jnp.int32).astype(like.dtype)

    return {name: jax.device_put(draw(name, like), like.sharding) for name, like in layout.items()}


def measure_step(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the bytes planned of a step, the peak that was seen and its images/s."""
    config, topology = config_of(args), open_topology(None)
    began = time.perf_counter()
    budget = make_budget(config, topology, classes=args.classes)
    planned_s = time.perf_counter() - began
    run = prepare(config, opener=functools.partial(describe_data, classes=args.classes))
    state, shardings = create_state(
        run.model, run.tx, jax.random.key(0), head_bias=0.0, loaded=None, **run.state
    )
    step = make_step(run, shardings, None)
    batch, key = random_batch(batch_layout(run), classes=args.classes), jax.random.key(1)

    def seconds(calls: int) -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(calls):
            state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / calls

    first = seconds(1)
    calls = max(2, int(args.seconds / 3 / seconds(2)))
    ms = 1e3 * statistics.median(seconds(calls) for _ in range(3))
    device = jax.devices()[0]
    return {
        "run": "plan",
        "device": device.device_kind,
        "model": args.model,
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "planned_bytes": budget.total,
        "planned": dict(budget.memory),
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "plan_s": round(planned_s, 1),
        "first_s": round(first, 1),
        "step_images_per_second": round(1e3 * args.batch_size / ms, 1),
    }


def write_dataset(folder: Path, *, distinct: int, files: int) -> None:
    """Writes `distinct` JPEGs in class folders, and links to them, as many as `files` in all."""
    write_images(folder, distinct)
    originals = sorted(folder.rglob("*.jpg"))
    for number, path in zip(range(distinct, files), itertools.cycle(originals), strict=False):
        os.link(path, path.with_name(f"{number:05}.jpg"))
    for path in (folder / "train").iterdir():
        shutil.move(path, folder)
    (folder / "train").rmdir()


def measure_train(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the speed of train.py in `args.seconds` after its start, by its own metrics."""
    workdir = folder / "run"
    command = [sys.executable, str(ROOT / "train.py"), *flags_of(args), f"--workdir={workdir}"]
    command += [f"--config.data.dataset={folder / 'images'}"]
    errors = folder / "train.log"
    with errors.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    rows: list[dict[str, Any]] = []
    try:
        while process.poll() is None and _seconds(rows, args) < args.seconds:
            time.sleep(0.2)
            rows = _rows(workdir / "metrics.jsonl")
            if time.monotonic() > args.deadline - args.seconds:
                break
    finally:
        ended = process.poll()
        process.kill()  # its folder goes with it, so that nothing is worth saving
        process.wait()
    rows = rows[_skipped(args) :]
    if not rows:
        last = errors.read_text(encoding="utf-8").strip().splitlines()[-1:]
        why = f"status {ended}" if ended is not None else "no metrics in time"
        return {"train_error": f"{why}: {' '.join(last)[:300]}", "right": False}
    return {
        "train_images_per_second": round(_rate(rows), 1),
        "train_rows": [round(row["images_per_second"], 1) for row in rows],
        "waiting_for_input": round(statistics.fmean(row["time/input"] for row in rows), 3),
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of training that a run has written so far."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    rows = [json.loads(line) for line in whole.splitlines()]
    return [row for row in rows if "images_per_second" in row]


def _skipped(args: argparse.Namespace) -> int:
    """Returns the rows that have the compilation, the start of the workers and full buffers."""
    return 2 + math.ceil(args.workers * BUFFERED / args.steps_per_row)


def _rate(rows: Sequence[dict[str, Any]]) -> float:
    return statistics.harmonic_mean([row["images_per_second"] for row in rows])


def _seconds(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> float:
    images = args.steps_per_row * args.batch_size
    return sum(images / row["images_per_second"] for row in rows[_skipped(args) :])


def measure_input(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns the images/s that the workers load without a device."""
    side = args.img_size or 224
    source = open_source(str(folder / "images"), split="train", seed=0, holdout=0.25)
    batches = make_train_iterator(
        source,
        batch_size=args.batch_size,
        transform=TrainTransform((side, side)),
        seed=0,
        workers=args.workers,
    )
    with contextlib.closing(batches):
        for _ in range(2 * args.workers + 2):  # so that workers have started
            next(batches)
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < args.seconds / 2:
            images += len(next(batches)["image"])
        rate = images / (time.perf_counter() - began)
    return {"input_images_per_second": round(rate, 1), "workers": args.workers}


def run_train(args: argparse.Namespace, command: Sequence[str]) -> dict[str, Any]:
    """Returns a line of the step, of train.py and of the input, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "images", distinct=args.distinct, files=args.files)
        # train.py finds the programs that the step has compiled.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
        plan = [sys.executable, __file__, *command, "--part", "plan", "--classes", "2"]
        left = max(0.0, args.deadline - time.monotonic())
        try:
            done = subprocess.run(
                plan, stdout=subprocess.PIPE, text=True, check=False, timeout=left
            )
        except subprocess.TimeoutExpired:
            return {"run": "train.py", "train_error": "no time for its step"}
        line = json.loads(done.stdout) if done.returncode == 0 else {"right": False}
        line |= measure_train(args, folder) | measure_input(args, folder)
    step, train = (line.get(f"{name}_images_per_second") for name in ("step", "train"))
    share = {"share_of_step": round(train / step, 3)} if step and train else {}
    return line | {"run": "train.py", "cores": os.cpu_count()} | share


def parts(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Gives a line per part."""
    own = [f"--model={args.model}", f"--batch-size={args.batch_size}", f"--dtype={args.dtype}"]
    own += [f"--seconds={args.seconds}", *(["--smoke"] if args.smoke else [])]
    for part in args.part:
        args.deadline = time.monotonic() + args.patience
        yield measure_step(args) if part == "plan" else run_train(args, own)


def main() -> int:
    """Prints the lines; returns 1 where a run broke off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--part", nargs="+", choices=("plan", "train.py"), default=["plan", "train.py"])
    add("--model", default="swin_tiny_patch4_window7_224")
    add("--batch-size", type=int, default=128)
    add("--dtype", default="bfloat16")
    add("--img-size", type=int)
    add("--classes", type=int, default=1000, help="of the plan; train.py's images have 2")
    add("--workers", type=int, default=os.cpu_count())
    add("--seconds", type=float, default=15.0, help="of each measurement")
    add("--patience", type=float, default=240.0, help="seconds for a part")
    add("--smoke", action="store_true", help="a tiny model, on any device")
    args = parser.parse_args()
    args.distinct, args.files, args.steps_per_row = DISTINCT, FILES, STEPS_PER_ROW
    if args.smoke:
        args.model, args.img_size, args.dtype, args.batch_size = TINY, 32, "float32", 4
        args.distinct, args.files, args.steps_per_row, args.workers = 4, 16, 2, 1
        args.seconds = 0.5
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    right = True
    for line in parts(args):
        print(json.dumps(line), flush=True)
        right &= line.get("right", True)
    return int(not right)


TINY = "vit_tiny_patch16_224"

if __name__ == "__main__":
    sys.exit(main())

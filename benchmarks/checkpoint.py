"""Times of the trainer's checkpoints: the loop's wait, the whole write, and the restore.

python benchmarks/checkpoint.py [--model NAME] [--rounds 3] [--folder FOLDER] [--json] [--smoke]

A state of parameters and AdamW's moments, random numbers all, is saved and restored as a run does
it. Beside it, in turns, the same arrays by `np.save`, one file an array: a writer that does nothing
else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from vitswin_jax.benchmark.cases import random_variables
from vitswin_jax.models.registry import create_model
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.optim.optimizers import make_optim
from vitswin_jax.train.sharding import create_mesh, state_shardings
from vitswin_jax.train.state import TrainState, new_state


def seconds(work: Callable[[], Any]) -> float:
    """Returns the wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def make_state(name: str) -> tuple[TrainState, optax.GradientTransformation, Any]:
    """Returns a state on the first device, after one step, its optimizer and its groups."""
    schedule = {"schedule": "constant", "peak_lr": 1e-3, "total_steps": 1}
    _, tx, groups = make_optim({"name": "adamw", **schedule})
    params = random_variables(create_model(name))["params"]
    state = new_state(params, tx).replace(step=np.int32(1))
    return jax.device_put(state, state_shardings(create_mesh(data=1), state)), tx, groups


def round_trip(state: TrainState, folder: Path) -> dict[str, float]:
    """Returns seconds: that `save` kept its caller, until all was written, and of restoring."""
    with Checkpoints(folder, newest=1) as checkpoints:
        start = time.perf_counter()
        waited = seconds(lambda: checkpoints.save(state, next_batch=1))
    written = time.perf_counter() - start
    layout = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpoints(folder, newest=1) as checkpoints:
        restored = seconds(
            lambda: jax.block_until_ready(checkpoints.restore_or(lambda: state, layout)[0])
        )
    return {"waited": waited, "written": written, "restored": restored}


def plain(state: TrainState, folder: Path) -> dict[str, float]:
    """Returns seconds of writing and reading the same arrays by NumPy."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    paths = [folder / f"{number}.npy" for number in range(len(leaves))]
    folder.mkdir()
    written = seconds(lambda: [np.save(*pair) for pair in zip(paths, leaves, strict=True)])
    restored = seconds(lambda: [np.load(path) for path in paths])
    return {"waited": written, "written": written, "restored": restored}


def main() -> None:
    """Prints a line for each writer, or with --json every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="once, with the smallest model")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.rounds = "vit_tiny_patch16_224", 1
    state, _, _ = make_state(options.model)
    runs: dict[str, list[dict[str, float]]] = {"checkpoints": [], "np.save": []}
    for _ in range(options.rounds):
        for name, work in (("checkpoints", round_trip), ("np.save", plain)):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                runs[name].append(work(state, Path(folder) / "state"))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if options.json:
        print(json.dumps({"model": options.model, "bytes": size, "runs": runs}))
        return
    print(f"{options.model}: {size / 1e9:.2f} GB; seconds, the median of {options.rounds} rounds")
    for name, found in runs.items():
        cells = (f"{key} {statistics.median(one[key] for one in found):.2f}" for key in found[0])
        print(f"{name:12}", *cells, sep="  ")


if __name__ == "__main__":
    main()

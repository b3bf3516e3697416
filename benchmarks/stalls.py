"""The stall of a training run by a save: the step after it, beside steps without a save.

python benchmarks/stalls.py [--model NAME] [--batch-size 8] [--saves 20] [--every 5]
                            [--folder FOLDER] [--json] [--smoke]

A real training step runs on random images, and its state is saved before every fifth step: as a
checkpoint of a workdir, and as a set on the host's own disk. The stall of a save is the time of
this step, with the save, less the median step of a round that saves nothing.
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
from checkpoint import make_state

from vitswin_jax.models.registry import create_model
from vitswin_jax.nn.layers import pair
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.local import LocalSets
from vitswin_jax.train.sharding import create_mesh, shard_batch, state_shardings
from vitswin_jax.train.step import StepOptions, make_train_step

KINDS = ("none", "checkpoint", "local set")
OWNER = {"run": "stalls", "config": "stalls"}


class Loop:
    """A training loop whose every step is waited for, as by a run that reads each loss."""

    def __init__(self, name: str, batch_size: int) -> None:
        model = create_model(name)
        self.state, tx, groups = make_state(name)
        mesh = create_mesh(data=1)
        self._step = make_train_step(
            model,
            tx,
            options=StepOptions(groups=groups),
            mesh=mesh,
            shardings=state_shardings(mesh, self.state),
        )
        rng = np.random.default_rng(0)
        shape = (batch_size, *pair(model.img_size), model.in_chans)
        batch = {
            "image": rng.standard_normal(shape, np.float32),
            "label": rng.integers(model.num_classes, size=batch_size).astype(np.int32),
            "mask": np.ones(batch_size, np.float32),
        }
        self._batch, self._key = shard_batch(batch, mesh), jax.random.key(0)
        for _ in range(3):
            self.seconds(None)

    def seconds(self, save: Callable[[Any], None] | None) -> float:
        """Returns the seconds of a step, and of the save before it."""
        start = time.perf_counter()
        if save is not None:
            save(self.state)
        self.state, metrics = self._step(self.state, self._batch, self._key)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def measure(loop: Loop, kind: str, folder: Path, *, saves: int, every: int) -> dict[str, Any]:
    """Returns the seconds of the steps that save and of the others, after a first save."""
    local = None
    if kind == "local set":
        local = LocalSets(
            str(folder / "local"), folder, owner=OWNER, data=None, seconds=0.0, total_steps=1 << 30
        )
    saved, others = [], []
    with Checkpoints(folder / "checkpoints", newest=2, local=local) as checkpoints:

        def save(state: Any) -> None:
            checkpoints.save(state, next_batch=1, local=local is not None)

        for number in range((saves + 1) * every):
            due = kind != "none" and number % every == 0
            seconds = loop.seconds(save if due else None)
            if number >= every:
                (saved if due else others).append(seconds)
    return {"saved": saved, "others": others}


def main() -> None:
    """Prints a line for each kind of save, or with --json every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps from a save to the next")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="two saves of the smallest model")
    options = parser.parse_args()
    if options.smoke:
        options.model, options.batch_size, options.saves = "vit_tiny_patch16_224", 1, 2
        options.every = 2
    loop = Loop(options.model, options.batch_size)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loop.state))
    runs = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            runs[kind] = measure(loop, kind, Path(folder), saves=options.saves, every=options.every)
    if options.json:
        print(json.dumps({"model": options.model, "bytes": size, "runs": runs}))
        return
    step = statistics.median(runs["none"]["others"])
    print(f"{options.model}, batches of {options.batch_size}, {size / 1e9:.2f} GB of state")
    print(f"a step without saves: {step:.3f} s (median)")
    for kind in KINDS[1:]:
        stalls = [(seconds - step) / step for seconds in runs[kind]["saved"]]
        others = statistics.mean(runs[kind]["others"]) / step
        print(
            f"{kind}: a save stalls by {statistics.median(stalls):.2f} steps (median of "
            f"{len(stalls)}; at most {max(stalls):.2f}), the other steps take {others:.2f}"
        )


if __name__ == "__main__":
    main()

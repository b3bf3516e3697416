"""A week on machines that fail, in minutes: what becomes of a run that is broken off all the time.

python benchmarks/week.py [--faults 50] [--seed 0] [--folder DIR] [--smoke]

Trains a tiny ViT on the embedded digits: once unbroken; then, with half of the faults, on devices
that stay the same ("stays"); then, with the others, on other devices at each start ("moves"). A
fault is `kill -9` at a random step, SIGTERM, or `kill -9` and damage to a file of the newest
checkpoint: cut off, a bit flipped, removed. Each start is a process of its own, on CPU devices.
Prints the faults and a verdict, and exits with 1 where it is not kept:

- "stays" ends bit for bit as the unbroken run: every loss, and every array of the last checkpoint,
  parameters, optimizer and average;
- "moves" ends as it does to 1e-5: losses, parameters, and logits;
- no example of an epoch is seen twice or missed: each image that a process gives to its steps is
  noted by its pixels, which is why nothing is done to images before the device (there they are
  mixed and erased as ever).
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")  # a start need not import everything anew
SERVER.set_forkserver_preload(["configs.digits", "vitswin_jax.trainer"])
TOLERANCE = 1e-5
BATCH_SIZE = 64
STEPS_PER_FAULT = 12
LATEST = 20  # steps until a fault; some are lost again, so that faults end before the run does
RECIPE = {
    "model.embed_dim": 64,  # or arrays lie in the index of Orbax's database, and not in its files
    "model.depth": 1,
    "model.num_heads": 2,
    "data.batch_size": BATCH_SIZE,
    "data.eval_batch_size": BATCH_SIZE,
    "augment.crop": "none",
    "augment.rotate": 0.0,
    "augment.zoom": 0.0,
    "augment.erase_prob": 0.25,
    "augment.mixup_alpha": 0.2,
    "augment.cutmix_alpha": 1.0,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.peak_lr": 0.005,  # at 0.02 roundings grow: on other devices logits were 5e-5 apart
    "optim.weight_decay": 1e-4,
    "optim.epochs": 0.0,
    "optim.warmup_epochs": 0.0,
    "optim.warmup_steps": 10,
    "ema.decay": 0.99,
    "ema.evaluate": False,
    "run.log_steps": 1,
    "run.eval_epochs": 5.0,
    "run.checkpoint_epochs": 0.0,
    "run.checkpoint_steps": 4,
    "run.keep_checkpoints": 4,
}
Topology = tuple[int, int, int]  # devices, mesh.fsdp, mesh.tensor; mesh.data has the rest
# The first is that of the unbroken run.
TOPOLOGIES = ((4, 2, 1), (8, 1, 1), (1, 1, 1), (8, 2, 2), (2, 1, 2), (4, 1, 1))
DAMAGES = ("cut off", "bit flipped", "file removed")
KINDS = ("kill -9", "SIGTERM", *DAMAGES)


@dataclass(frozen=True)
class Fault:
    """A fault that one start of a run meets."""

    kind: str
    after: int  # steps
    topology: Topology


def plan_faults(dice: random.Random, count: int, *, moves: bool) -> list[Fault]:
    """Returns a schedule: every kind as often, in any order; with `moves`, on changing devices."""
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    dice.shuffle(kinds)
    faults, before = [], TOPOLOGIES[0]
    for kind in kinds:
        if moves:
            before = dice.choice([each for each in TOPOLOGIES if each != before])
        faults.append(Fault(kind, dice.randint(1, LATEST), before))
    return faults


def train(workdir: Path, told: Path, seen: Path, steps: int, topology: Topology) -> None:
    """Trains in this process, and notes where it begins and the pixels of each batch's images."""
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    # Far more is compiled than computed, so that programs are not optimised.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={topology[0]} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    from configs import digits
    from vitswin_jax.core.types import UserError
    from vitswin_jax.train.run import inputs
    from vitswin_jax.trainer import train_and_evaluate

    make_train_iterator = inputs.make_train_iterator

    def observe(*args: Any, start_batch: int, **kwargs: Any) -> Iterator[Any]:
        with seen.open("a", buffering=1) as file:
            file.write(f"{start_batch}\n")
            batches = make_train_iterator(*args, start_batch=start_batch, **kwargs)
            try:
                for batch in batches:
                    images = (zlib.crc32(image.tobytes()) for image in batch["image"])
                    file.write(" ".join(f"{each:08x}" for each in images) + "\n")
                    yield batch
            finally:
                batches.close()

    inputs.make_train_iterator = observe
    log = logging.getLogger("vitswin_jax")
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    config = digits.get_config("vit")
    config.update_from_flattened_dict(RECIPE)
    config.optim.total_steps = steps
    config.mesh.fsdp, config.mesh.tensor = topology[1:]
    try:
        train_and_evaluate(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


class Series:
    """The starts of one run, each in a process of its own."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.workdir, self.steps = folder / "run", steps
        self.seen = folder / "seen"  # a file a start
        self.seen.mkdir(parents=True)
        self._told = folder / "told"  # by the last start

    def start(self, topology: Topology) -> BaseProcess:
        """Starts or resumes the run; on several hosts this would be a process each."""
        self._notes = self.seen / f"{len(list(self.seen.iterdir())):03}"
        self._notes.touch()
        arguments = (self.workdir, self._told, self._notes, self.steps, topology)
        process = SERVER.Process(target=train, args=arguments)
        process.start()
        return process

    def finish(self, topology: Topology) -> str:
        """Starts it, and lets it come to its end; returns what it logged of damage."""
        process = self.start(topology)
        process.join()
        if process.exitcode:
            raise SystemExit(f"the run ended with {process.exitcode}:\n{self._told.read_text()}")
        return damage_in(self._told.read_text())

    def suffer(self, fault: Fault, dice: random.Random) -> tuple[int, int, str]:
        """Starts it and lets a fault happen.

        Returns the step it began after, the last that it logged, and what it logged of damage.
        """
        process = self.start(fault.topology)
        while process.is_alive() and self._notes.read_text().count("\n") < 2:
            time.sleep(0.01)
        begin = int(self._notes.read_text().partition("\n")[0] or -1)
        while process.is_alive() and self.last_step() < begin + fault.after:
            time.sleep(0.002)
        (process.terminate if fault.kind == "SIGTERM" else process.kill)()
        process.join()
        told = self._told.read_text()
        if process.exitcode not in (-signal.SIGKILL, 128 + signal.SIGTERM):
            raise SystemExit(f"the run ended with {process.exitcode}:\n{told}")
        if fault.kind in DAMAGES:
            damage(self.workdir / "checkpoints", fault.kind, dice)
        return begin, self.last_step(), damage_in(told)

    def last_step(self) -> int:
        """Returns the last step that the run has logged."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def rows(self) -> list[dict[str, Any]]:
        """Returns the steps that the run has logged."""
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "train/loss" in row]

    def stream(self) -> list[str]:
        """Returns the pixels' sums of all images that were trained on, in their order.

        Each start resumes at a batch; what the ones before had taken beyond it is lost.
        """
        batches: list[list[str]] = []
        for notes in sorted(self.seen.iterdir()):
            begin, *lines = notes.read_text().split("\n")[:-1] or ["0"]
            if int(begin) > len(batches):
                raise SystemExit(f"{notes}: begins at batch {begin}, after {len(batches)}.")
            batches[int(begin) :] = [line.split() for line in lines]
        return [image for batch in batches[: self.steps] for image in batch]


def damage(folder: Path, kind: str, dice: random.Random) -> None:
    """Damages a file of the newest of at least two checkpoints."""
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    if len(steps) < 2:
        return
    files = sorted(path for path in (folder / str(steps[-1])).rglob("*") if path.is_file())
    path = dice.choices(files, weights=[path.stat().st_size for path in files])[0]
    content = bytearray(path.read_bytes())
    if kind == "file removed":
        path.unlink()
    elif kind == "cut off":
        path.write_bytes(content[: dice.randrange(len(content))])
    else:
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)


def damage_in(told: str) -> str:
    """Returns the lines that a run logged about damaged checkpoints."""
    found = re.findall(r"/(\d+): damaged: (.*?); it is now", told)
    return "; ".join(f"{step}: {reason[:48]}" for step, reason in found)


def check_examples(series: Series) -> str:
    """Returns how often each example was seen; raises ValueError where it was not once an epoch."""
    stream = series.stream()
    if len(stream) != series.steps * BATCH_SIZE:
        raise ValueError(f"{len(stream)} images in {series.steps} steps")
    epoch = len(set(stream))
    for number in range(len(stream) // epoch):
        counts = collections.Counter(stream[number * epoch : (number + 1) * epoch])
        if set(counts.values()) != {1}:
            raise ValueError(f"epoch {number}: {sum(c > 1 for c in counts.values())} seen twice")
    return f"{len(stream) // epoch} whole epochs of {epoch} examples, each seen once in each"


def check_exact(series: Series, unbroken: Series) -> str:
    """Returns the parts that are equal bit for bit; raises ValueError if a part is not."""
    ours, theirs = ([row["train/loss"] for row in each.rows()] for each in (series, unbroken))
    if ours != theirs or len(ours) != series.steps:
        raise ValueError(f"losses of {len(ours)} steps are not those of {len(theirs)}")
    ours, theirs = (
        json.loads((each.workdir / f"checkpoints/{each.steps}/meta/metadata").read_text())["arrays"]
        for each in (series, unbroken)
    )
    if wrong := [path for path in theirs if ours[path] != theirs[path]]:
        raise ValueError(f"{', '.join(wrong)} differ")
    return f"{series.steps} losses and {len(ours)} arrays of the last state, bit for bit"


def check_close(series: Series, unbroken: Series) -> str:
    """Returns the largest differences; raises ValueError where one is above the tolerance."""
    from vitswin_jax import load_pretrained, make_preprocess
    from vitswin_jax.data.decode import decode_image
    from vitswin_jax.data.sources.open import open_source

    far = {}
    losses = [np.array([row["train/loss"] for row in each.rows()]) for each in (series, unbroken)]
    far["losses"] = np.abs(losses[0] - losses[1]).max()
    loaded = [load_pretrained(each.workdir) for each in (series, unbroken)]
    params = [np.concatenate([np.ravel(x) for x in _leaves(params)]) for _, params in loaded]
    far["parameters"] = np.abs(params[0] - params[1]).max()
    source, preprocess = open_source("digits", split="test"), make_preprocess(unbroken.workdir)
    encoded = [source[i]["image"] for i in range(len(source))]
    images = np.concatenate([preprocess(decode_image(each, name="a digit")) for each in encoded])
    logits = [np.asarray(model.apply(params, images)) for model, params in loaded]
    far["logits"] = np.abs(logits[0] - logits[1]).max()
    told = ", ".join(f"{what} to {difference:.1e}" for what, difference in far.items())
    if max(far.values()) > TOLERANCE:
        raise ValueError(f"{told}, not {TOLERANCE}")
    return told


def _leaves(tree: Any) -> list[np.ndarray]:
    if not hasattr(tree, "items"):
        return [np.asarray(tree)]
    return [leaf for _, branch in sorted(tree.items()) for leaf in _leaves(branch)]


def suffer_all(name: str, series: Series, faults: list[Fault], dice: random.Random) -> None:
    """Lets the faults happen one after the other, prints them, and lets the run end."""
    row = ""
    for number, fault in enumerate(faults, start=1):
        begin, at, told = series.suffer(fault, dice)
        if row:
            print(f"{row}  {told}", flush=True)
        devices = "x".join(map(str, fault.topology))
        row = f"{name:8}{number:4}  {devices:8}{fault.kind:14}{begin:6}{at:6}"
    told = series.finish(faults[-1].topology)
    print(f"{row}  {told}", flush=True)


def main() -> int:
    """Lets the week happen; returns 1 where the verdict is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept")
    parser.add_argument("--smoke", action="store_true", help="a single fault")
    options = parser.parse_args()
    if options.smoke:
        options.faults = 1
    dice = random.Random(options.seed)
    counts = {"stays": (options.faults + 1) // 2, "moves": options.faults // 2}
    steps = STEPS_PER_FAULT * (max(counts.values()) + 1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        os.environ |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        sys.path.insert(0, str(ROOT))
        unbroken = Series(folder / "unbroken", steps)
        unbroken.finish(TOPOLOGIES[0])
        print(f"{'run':8}{'no.':>4}  {'devices':8}{'fault':14}{'from':>6}{'at':>6}  then damaged")
        kept = True
        broken = {}
        for name, count in counts.items():
            if not count:
                continue
            series = broken[name] = Series(folder / name, steps)
            faults = plan_faults(dice, count, moves=name == "moves")
            suffer_all(name, series, faults, dice)
        print()
        for name, series in {"unbroken": unbroken, **broken}.items():
            checks = [lambda series=series: check_examples(series)]
            if name == "stays":
                checks.append(lambda series=series: check_exact(series, unbroken))
            if name == "moves":
                checks.append(lambda series=series: check_close(series, unbroken))
            for check in checks:
                try:
                    print(f"{name:10}ok      {check()}")
                except ValueError as error:
                    kept = False
                    print(f"{name:10}NOT OK  {error}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

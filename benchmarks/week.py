"""A week on machines that fail, in minutes: what becomes of a run that is broken off all the time.

python benchmarks/week.py [--faults 100] [--seed 0] [--runs stays,moves,hosts] [--folder DIR]
                          [--smoke]

Trains a tiny ViT on the embedded digits, with checkpoints and, more often, sets on its hosts' own
disks: once unbroken; then with half of the faults on devices that stay the same, two slices
("stays"); with three of ten on another mesh at each start ("moves"); and with two of ten on two
processes that are a slice each ("hosts"). A fault is `kill -9`, of all hosts or of one, at a random
step, or SIGTERM; `kill -9` may go with damage to the newest checkpoint or to the newest local set,
of which a file is cut off, a bit flipped or a file removed, or with the loss of a disk, or of all
disks and a file of the newest checkpoint. Each start is a process per host, on CPU devices. Prints
the faults, a verdict, and where the time of each run went; exits with 1 where one of these is not
kept:

- each start resumes from the newest state that is whole, so that no step before it is lost;
- "stays" and "hosts" end bit for bit as the unbroken run of the same topology: every loss, and
  every array of the last checkpoint, parameters, optimizer and average;
- "moves" and "hosts" end as the unbroken run of one process to 1e-5: losses, parameters and logits;
- no example of an epoch is seen twice or missed: each image that a process gives to its steps is
  noted by its pixels, which is why nothing is done to images before the device (there they are
  mixed and erased as ever);
- a local disk has no set of a run that has ended.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from week_runs import BATCH_SIZE, ROOT, BrokenError, Series, Topology
from week_states import DAMAGES

TOLERANCE = 1e-5
STEPS_PER_FAULT = 8
LEAST = 43  # steps, which are an epoch
TWO_SLICES, TWO_HOSTS = Topology(1, 4, 2, 2, 1), Topology(2, 1, 2, 1, 1)
TOPOLOGIES = (  # of "moves"
    TWO_SLICES,
    Topology(1, 4, 1, 1, 1),
    Topology(1, 1, 1, 1, 1),
    Topology(1, 2, 2, 1, 1),
    Topology(1, 2, 1, 1, 2),
    Topology(1, 4, 1, 2, 1),
    Topology(1, 4, 2, 1, 2),
)
KINDS = ("kill -9", "SIGTERM", *DAMAGES)
SHARES = {"stays": 5, "moves": 3, "hosts": 2}  # of ten faults


@dataclass(frozen=True)
class Fault:
    """A fault that one start of a run meets."""

    kind: str
    after: int  # steps
    topology: Topology


@dataclass(frozen=True)
class Loss:
    """The steps that a fault cost."""

    at: int
    """The last step that was finished before it."""
    whole: int
    """The step of the newest whole state after it."""
    resumed: int
    """The step from which the next start resumed."""

    @property
    def steps(self) -> int:
        """The number of steps that were lost."""
        return self.at - self.resumed


def plan_faults(
    dice: random.Random, count: int, latest: int, places: Sequence[Topology]
) -> list[Fault]:
    """Returns a schedule: every kind as often, in any order, and after 1 to `latest` steps.

    Of several places none comes twice in a row, nor the first one first.
    """
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    dice.shuffle(kinds)
    faults, place = [], places[0]
    for kind in kinds:
        place = dice.choice([each for each in places if each != place] or [place])
        faults.append(Fault(kind, dice.randint(1, latest), place))
    return faults


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
    ours, theirs = (losses_of(each) for each in (series, unbroken))
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
    losses = [np.array(losses_of(each)) for each in (series, unbroken)]
    far["losses"] = np.abs(losses[0] - losses[1]).max()
    loaded = [load_pretrained(each.workdir) for each in (series, unbroken)]
    params = [np.concatenate([np.ravel(x) for x in _leaves(params)]) for _, params in loaded]
    far["parameters"] = np.abs(params[0] - params[1]).max()
    source, preprocess = open_source("digits", split="test"), make_preprocess(unbroken.workdir)
    encoded = [source[i]["image"] for i in range(len(source))]
    images = np.concatenate([preprocess(decode_image(each, name="a digit")) for each in encoded])
    logits = [np.asarray(model.apply(params, images)) for model, params in loaded]
    far["logits"] = np.abs(logits[0] - logits[1]).max()
    agreed = ", ".join(f"{what} to {difference:.1e}" for what, difference in far.items())
    if max(far.values()) > TOLERANCE:
        raise ValueError(f"{agreed}, not {TOLERANCE}")
    return agreed


def _leaves(tree: Any) -> list[np.ndarray]:
    if not hasattr(tree, "items"):
        return [np.asarray(tree)]
    return [leaf for _, branch in sorted(tree.items()) for leaf in _leaves(branch)]


def losses_of(series: Series) -> list[float]:
    """Returns the loss of each step, as the run has logged them."""
    lines = (series.workdir / "metrics.jsonl").read_text().splitlines()
    return [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]


def check_lost(losses: Sequence[Loss]) -> str:
    """Returns how much was lost; raises ValueError where it was more than must be."""
    for number, loss in enumerate(losses, start=1):
        if loss.resumed < loss.whole:
            raise ValueError(f"fault {number}: resumed from {loss.resumed}, not {loss.whole}")
    steps = [loss.steps for loss in losses]
    return (
        f"{len(losses)} faults: 0 steps lost beyond the newest whole state; at most {max(steps)} "
        f"of a fault, {sum(steps)} in all, and those states allow "
        f"{sum(loss.at - loss.whole for loss in losses)}"
    )


def check_disks(series: Series) -> str:
    """Returns that nothing is left; raises ValueError where a disk has a local set."""
    if left := [path for disk in series.states.disks() for path in disk.iterdir()]:
        raise ValueError(f"{left[0]} is left")
    return "no local set is left"


def suffer_all(name: str, series: Series, faults: list[Fault], dice: random.Random) -> list[Loss]:
    """Lets the faults happen one after the other, prints them, and lets the run end."""
    losses: list[Loss] = []
    row, at, whole = "", 0, 0
    places = [fault.topology for fault in faults]
    for number, fault in enumerate([*faults, None], start=1):
        if fault is None:
            series.finish(places[-1])
        else:
            ends = "SIGTERM" if fault.kind == "SIGTERM" else "kill -9"
            series.suffer(ends, fault.after, fault.topology, dice)
        if row:
            losses.append(Loss(at, whole, series.begin))
            print(f"{row}{losses[-1].steps:6}  {series.restores()}", flush=True)
        if fault is not None:
            if fault.kind in DAMAGES:
                series.states.damage(fault.kind, dice)
            at, whole = series.last, series.states.newest([*places, places[-1]][number])
            row = f"{name:8}{number:4}  {fault.topology!s:9}{fault.kind:41}"
            row += f"{series.begin:6}{at:6}{whole:6}"
    return losses


def print_times(runs: Mapping[str, Series]) -> None:
    """Prints where the time of each run's life went, by its journal and by a stopwatch."""
    sys.path.insert(0, str(ROOT))
    from vitswin_jax.core.goodput import SPENT, read_goodput

    kinds = [kind for kind in SPENT if kind != "device"]
    print("", "| run | starts | life, s | steps kept | steps repeated | "
          + " | ".join(kinds) + " | down |", "| --- " + "| ---: " * (len(kinds) + 5) + "|",
          sep="\n")  # fmt: skip
    read = {name: read_goodput(series.workdir) for name, series in runs.items()}
    for name, goodput in read.items():
        parts = [goodput.productive, goodput.repeated, *map(goodput.spent.get, kinds), goodput.down]
        shares = " | ".join(f"{100 * seconds / goodput.total:.1f} %" for seconds in parts)
        print(f"| {name} | {goodput.restarts + 1} | {goodput.total:.0f} | {shares} |")
    print("", "| run: journal / stopwatch | life, s | steps kept | until the first step | "
          "number of steps repeated |", "| --- " + "| ---: " * 4 + "|", sep="\n")  # fmt: skip
    for name, goodput in read.items():
        life, kept, until, repeated = stopwatch(runs[name])
        start = sum(goodput.starts)
        print(
            f"| {name} | {goodput.total:.0f} / {life:.0f} "
            f"| {100 * goodput.share:.1f} % / {100 * kept / life:.1f} % "
            f"| {100 * start / goodput.total:.1f} % / {100 * until / life:.1f} % "
            f"| {goodput.steps_repeated} / {repeated} |"
        )


def stopwatch(series: Series) -> tuple[float, float, float, int]:
    """Returns the seconds of a run's life, of the steps that it kept, and of its starts until each
    had taken a step, and the number of steps that were repeated.
    """
    kept: dict[int, float] = {}
    until, taken = 0.0, 0
    for host, *_ in series.starts:
        _, first, steps = host.seconds()
        until, taken = until + first, taken + len(steps)
        kept |= dict(enumerate(steps, start=host.begin + 1))
    life = series.ended - series.starts[0][0].seconds()[0]
    return life, sum(kept.values()), until, taken - len(kept)


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default=",".join(SHARES), help="which of the broken runs")
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept")
    parser.add_argument("--smoke", action="store_true", help="a single fault")
    options = parser.parse_args()
    if options.smoke:
        options.faults = 1
    options.runs = options.runs.split(",")
    if not set(options.runs) <= SHARES.keys():
        parser.error(f"--runs: {','.join(options.runs)} must be some of {','.join(SHARES)}.")
    return options


def count_faults(count: int) -> dict[str, int]:
    """Returns the number of faults of each broken run; the first has what is left over."""
    counts = {name: count * share // sum(SHARES.values()) for name, share in SHARES.items()}
    return counts | {"stays": count - counts["moves"] - counts["hosts"]}


def main() -> int:
    """Lets the week happen; returns 1 where the verdict is not kept."""
    options = parse()
    faults_of = count_faults(options.faults)
    counts = {name: faults_of[name] for name in options.runs if faults_of[name]}
    steps = max(LEAST, STEPS_PER_FAULT * (max(faults_of.values()) + 1))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder.resolve() if options.folder else Path(temporary)
        os.environ |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        sys.path.insert(0, str(ROOT))
        load = os.getloadavg()[2]
        runs: dict[str, Series] = {}
        for name, place in {"unbroken": TWO_SLICES, "two hosts": TWO_HOSTS}.items():
            if name == "unbroken" or "hosts" in counts:
                runs[name] = Series(folder / name.replace(" ", "_"), steps)
                runs[name].finish(place)
        print(f"{'run':8}{'no.':>4}  {'mesh':9}{'fault':41}{'from':>6}{'at':>6}{'whole':>6}"
              f"{'lost':>6}  then", flush=True)  # fmt: skip
        losses, broken = {}, set()
        for name, count in counts.items():
            runs[name] = Series(folder / name, steps)
            dice = random.Random(f"{options.seed} {name}")
            places = {"stays": [TWO_SLICES], "moves": TOPOLOGIES, "hosts": [TWO_HOSTS]}[name]
            faults = plan_faults(dice, count, steps * 5 // (4 * (count + 1)), places)
            try:
                losses[name] = suffer_all(name, runs[name], faults, dice)
            except BrokenError as error:
                print(f"{name:8}NOT OK  {error}", flush=True)
                broken.add(name)
        print()
        ended = {name: series for name, series in runs.items() if name not in broken}
        kept = judge(ended, losses) and not broken
        print_times(ended)
        import jax

        print(
            f"\n{sum(counts.values())} faults, seed {options.seed}, {steps} steps; "
            f"{machine.processor()}, {os.cpu_count()} cores, "
            f"load {load:.1f} before and {os.getloadavg()[2]:.1f} after; "
            f"Python {platform.python_version()}, JAX {jax.__version__}, commit {machine.commit()}"
        )
    return 0 if kept else 1


def judge(runs: Mapping[str, Series], losses: Mapping[str, Sequence[Loss]]) -> bool:
    """Prints what was kept and what was not; returns whether all was."""
    kept, one, two = True, runs["unbroken"], runs.get("two hosts")
    for name, series in runs.items():
        checks: list[Callable[[], str]] = [
            lambda series=series: check_examples(series),
            lambda series=series: check_disks(series),
        ]
        if name in losses:
            checks.append(lambda name=name: check_lost(losses[name]))
        if name in ("stays", "hosts"):
            like = two if name == "hosts" else one
            checks.append(lambda series=series, like=like: check_exact(series, like))
        if name in ("moves", "hosts", "two hosts"):
            checks.append(lambda series=series: check_close(series, one))
        for check in checks:
            try:
                print(f"{name:10}ok      {check()}")
            except ValueError as error:
                kept = False
                print(f"{name:10}NOT OK  {error}")
    return kept


if __name__ == "__main__":
    sys.exit(main())

"""Runs that signals end at random moments, from the first instruction to the last, and resume.

python benchmarks/stops.py [--signal SIGINT] [--count 50] [--seed 0] [--workers 1] [--folder DIR]

Trains a tiny ViT on the embedded digits: once unbroken, then again and again in one workdir, with
the signal sent to the whole process group, as a terminal sends Ctrl-C, after a random part of the
time that the unbroken run took: while it imports, opens data, compiles, restores, trains,
evaluates, saves and writes its report. Whenever a run comes to its end, its weights and its rows
of metrics are compared with the unbroken run's, and a new workdir is begun. Prints a line per
signal and a verdict, and exits with 1 where one of these is not kept:

- the process ends within a minute, with the status 128 + the signal's number (SIGKILL: -9);
- its standard error has one line that begins with `error: `, the last, and no traceback;
- every run ends bit for bit as the unbroken one, with the same rows of metrics, but for times.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE = 60  # seconds
UNEXPECTED = ("Traceback", "Fatal Python error", "KeyboardInterrupt", "Exception ignored")
SHOW = functools.partial(print, flush=True)
RECIPE = {
    "model.embed_dim": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "data.batch_size": 64,
    "data.eval_batch_size": 64,
    "augment.mixup_alpha": 0.2,
    "optim.epochs": 0.0,
    "optim.total_steps": 20,
    "optim.warmup_epochs": 0.0,
    "optim.warmup_steps": 2,
    "run.log_steps": 3,
    "run.eval_epochs": 0.0,
    "run.eval_steps": 4,
    "run.checkpoint_epochs": 0.0,
    "run.checkpoint_steps": 5,
}


@dataclass(frozen=True)
class Ended:
    """The end of a process: its status, its output, and its duration."""

    status: int
    told: str
    seconds: float  # since the signal

    def faults(self, number: int) -> list[str]:
        """Returns the faults of a run after a signal."""
        killed = number == signal.SIGKILL
        lines = [line for line in self.told.splitlines() if line]
        wrong = [word for word in UNEXPECTED if word in self.told]
        if self.status != (-number if killed else 128 + number):
            wrong.append(f"status {self.status}")
        errors = [line for line in lines if line.startswith("error: ")]
        if not killed and (len(errors) != 1 or lines[-1] != errors[0]):
            wrong.append(f"{len(errors)} lines of errors")
        return wrong


class Runs:
    """Runs of one recipe, each a process group of its own."""

    def __init__(
        self, folder: Path, *, workers: int, changes: dict[str, Any], env: dict[str, str]
    ) -> None:
        self.folder = folder
        # Without a cache of programs, so that signals meet the compiler.
        self._env = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"} | env
        recipe = RECIPE | {"data.workers": workers} | changes
        self._keys = [f"--config.{key}={value}" for key, value in recipe.items()]

    def start(self, name: str) -> subprocess.Popen[str]:
        """Starts the run of a workdir, or resumes it."""
        command = [sys.executable, str(ROOT / "train.py"), f"--config={ROOT}/configs/digits.py:vit"]
        return subprocess.Popen(
            [*command, f"--workdir={self.folder / name}", *self._keys],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | self._env,
        )

    def signal(self, name: str, number: int, wait: float, *, twice: float | None = None) -> Ended:
        """Starts or resumes a run and sends its group a signal after `wait` seconds, or two."""
        process = self.start(name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        for pause in (0.0, twice):
            if pause is not None and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(pause)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        return _end(process)

    def finish(self, name: str) -> Ended:
        """Starts or resumes a run and lets it come to its end."""
        return _end(self.start(name), 10 * PATIENCE)

    def outcome(self, name: str) -> tuple[bytes, list[dict[str, Any]]]:
        """Returns the weights of a run that has ended, and its rows without times."""
        weights = (self.folder / name / "model.safetensors").read_bytes()
        header = int.from_bytes(weights[:8], "little")  # which names the workdir
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        rows = [
            {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "images_per"))}
            for line in lines
        ]
        # A row of training comes a window late, or before a checkpoint: the order may differ.
        rows.sort(key=lambda row: (row["step"], "test/loss" in row))
        return weights[8 + header :], rows


def _end(process: subprocess.Popen[str], patience: float = PATIENCE) -> Ended:
    begun = time.monotonic()
    try:
        _, told = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, told = process.communicate()
        return Ended(-1, f"{told}\nerror: it hung", patience)
    return Ended(process.returncode, told, time.monotonic() - begun)


def stop_again_and_again(
    runs: Runs, number: int, count: int, dice: random.Random, *, show: Any = SHOW
) -> list[str]:
    """Sends `count` signals at random moments; returns all that went wrong."""
    begun = time.monotonic()
    ended = runs.finish("unbroken")
    whole = time.monotonic() - begun
    if ended.status:
        return [f"the unbroken run: {ended.told}"]
    wrong, workdirs, seconds, sent = [], 0, [], 0

    def compare() -> None:
        nonlocal workdirs
        if runs.outcome(f"run{workdirs}") != runs.outcome("unbroken"):
            wrong.append(f"run{workdirs} differs from the unbroken run")
        workdirs += 1

    while sent < count:
        wait = dice.uniform(0.15, whole)  # Python itself takes as long to start
        ended = runs.signal(f"run{workdirs}", number, wait)
        if ended.status == 0:
            compare()
            continue
        sent += 1
        seconds.append(ended.seconds)
        faults = ended.faults(number)
        wrong += [f"after {wait:.2f} s: {fault}" for fault in faults]
        last = (ended.told.strip().splitlines() or [""])[-1]
        took = f"{sent:3} {wait:6.2f} s  ended {ended.seconds:5.2f} s later"
        show(f"{took}  {last[:90]} {faults or ''}")
    ended = runs.finish(f"run{workdirs}")
    if ended.status:
        wrong.append(f"the last run: {ended.told}")
    else:
        compare()
    show(
        f"{count} signals, {len(wrong)} faults, {workdirs} runs ended as the unbroken one or are "
        f"named; a signal took {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s"
    )
    return wrong


def main() -> int:
    """Sends the signals; returns 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signal", default="SIGINT")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept")
    parser.add_argument("--smoke", action="store_true", help="a single signal")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = Runs(options.folder or Path(temporary), workers=options.workers, changes={}, env={})
        count = 1 if options.smoke else options.count
        number = getattr(signal, options.signal)
        wrong = stop_again_and_again(runs, number, count, random.Random(options.seed))
    print("\n".join(wrong) or "kept")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

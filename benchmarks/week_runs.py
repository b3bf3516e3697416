"""The runs of week.py: their starts, each a process per host, and the notes of each process.

A process notes the images that it gives to its steps, and the time of each step.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from week_states import DISK, States

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")  # a start need not import everything anew
SERVER.set_forkserver_preload(["configs.digits", "vitswin_jax.trainer"])
BATCH_SIZE = 32
LOST_AFTER = 10  # seconds until a host counts as lost
PATIENCE = 900  # seconds after a fault until a run hangs
RECIPE = {
    "model.embed_dim": 64,  # or arrays lie in the index of Orbax's database, and not in its files
    "model.depth": 1,
    "model.num_heads": 2,
    "data.batch_size": BATCH_SIZE,
    "data.eval_batch_size": 64,
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
    "loggers": (),
    "run.log_steps": 1,
    "run.eval_epochs": 5.0,
    "run.checkpoint_epochs": 0.0,
    "run.checkpoint_steps": 8,
    "run.keep_checkpoints": 4,
    "run.local_dir": DISK,
    "run.local_seconds": 0.05,
}


class Topology(NamedTuple):
    """Hosts, the devices of each, and three sizes of the mesh, whose fourth, data, has the rest."""

    hosts: int
    devices: int
    slices: int
    fsdp: int
    tensor: int

    @property
    def parts(self) -> tuple[int, int]:
        """Sizes by which a state is divided: a local set fits where they are the same."""
        return self.fsdp, self.tensor

    def __str__(self) -> str:
        """Returns the mesh: slices x data x fsdp x tensor."""
        data = self.hosts * self.devices // (self.slices * self.fsdp * self.tensor)
        return f"{self.slices}x{data}x{self.fsdp}x{self.tensor}"


@dataclass(frozen=True)
class Start:
    """A process of a host, in one start of a run."""

    folder: Path
    number: int
    host: int
    topology: Topology
    steps: int
    port: int
    """At which the hosts meet."""

    @property
    def output(self) -> Path:
        """The file of its output."""
        return self.folder / "output" / f"{self.number:03}-{self.host}"

    @property
    def seen(self) -> Path:
        """The batch it begins with, and of each batch's images a sum of the pixels of each."""
        return self.folder / "seen" / f"{self.number:03}-{self.host}"

    @property
    def times(self) -> Path:
        """When it began, when it asked for its first batch, and when each step began and ended.

        By `time.monotonic`, which all processes share.
        """
        return self.folder / "times" / f"{self.number:03}-{self.host}"

    def seconds(self) -> tuple[float, float, list[float]]:
        """Returns when it began, the seconds until its first step's end, and those of each step.

        Of the first step the time by which it is longer than the others does not count.
        """
        began, _, *lines = self.times.read_text().split("\n")[:-1]
        spans = [[float(text) for text in line.split()] for line in lines]
        steps = [end - begin for begin, end in spans]
        steps[0] = min(steps[0], statistics.mean(steps[1:] or steps))
        return float(began), spans[0][1] - float(began), steps

    @property
    def begin(self) -> int:
        """The step after which it trains."""
        return int(self.seen.read_text().partition("\n")[0] or 0)

    @property
    def last(self) -> int:
        """The last step that it has finished."""
        return self.begin + max(0, self.times.read_text().count("\n") - 2)


def train(start: Start) -> None:
    """Trains as a host of a run in this process, which ends with the status of `vitswin train`."""
    began = time.monotonic()
    output = os.open(start.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    topology = start.topology
    # Far more is compiled than computed, so that programs are not optimised.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={topology.devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    os.chdir(start.folder / f"host-{start.host}")  # whose disk is a folder in it
    import jax

    from configs import digits
    from vitswin_jax.core.types import UserError
    from vitswin_jax.train.hosts.join import joined
    from vitswin_jax.trainer import train_and_evaluate

    note_all(start, began)
    log = logging.getLogger("vitswin_jax")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    config = digits.get_config("vit")
    config.update_from_flattened_dict(RECIPE)
    config.optim.total_steps = start.steps
    config.mesh.slices, config.mesh.fsdp, config.mesh.tensor = topology[2:]
    hosts: dict[str, Any] = {"num_hosts": 1}
    if topology.hosts > 1:
        hosts = {
            "coordinator": f"127.0.0.1:{start.port}",
            "num_hosts": topology.hosts,
            "host_index": start.host,
            "lost_after": LOST_AFTER,
        }
    status = 0
    try:
        with joined(**hosts):
            train_and_evaluate(config, start.folder / "run", began=began)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = getattr(error, "exit_code", 1)
    if topology.hosts > 1:
        jax.distributed.shutdown()  # which multiprocessing would leave out
    sys.exit(status)


def note_all(start: Start, began: float) -> None:
    """Has this process note its images and its times."""
    import jax

    from vitswin_jax import trainer
    from vitswin_jax.train.run import inputs

    make_train_iterator, make_steps = inputs.make_train_iterator, trainer.make_steps
    times = start.times.open("w", buffering=1, encoding="utf-8")
    times.write(f"{began}\n")

    def observe(*args: Any, start_batch: int, **kwargs: Any) -> Iterator[Any]:
        times.write(f"{time.monotonic()}\n")
        with start.seen.open("w", buffering=1, encoding="utf-8") as file:
            file.write(f"{start_batch}\n")
            batches = make_train_iterator(*args, start_batch=start_batch, **kwargs)
            try:
                for batch in batches:
                    images = (zlib.crc32(image.tobytes()) for image in batch["image"])
                    file.write(" ".join(f"{each:08x}" for each in images) + "\n")
                    yield batch
            finally:
                batches.close()

    def make_timed(*args: Any) -> Any:
        step = make_steps(*args)

        def timed(*args: Any) -> Any:
            before = time.monotonic()
            done = jax.block_until_ready(step(*args))
            times.write(f"{before} {time.monotonic()}\n")
            return done

        return timed

    inputs.make_train_iterator, trainer.make_steps = observe, make_timed


def free_port() -> int:
    """Returns a port that no program listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class BrokenError(Exception):
    """A start that hung, ended with another status than it should, or printed a traceback."""


class Series:
    """The starts of one run, and when the last of them ended, by `time.monotonic`."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.workdir, self.steps = folder, folder / "run", steps
        self.states = States(folder)
        self.starts: list[list[Start]] = []
        """Of each start, its hosts."""
        self.ended = 0.0
        for name in ("output", "seen", "times"):
            (folder / name).mkdir(parents=True)

    def start(self, topology: Topology) -> list[BaseProcess]:
        """Starts or resumes the run; returns a process for each host."""
        rest = topology, self.steps, free_port() if topology.hosts > 1 else 0
        hosts = [Start(self.folder, len(self.starts), i, *rest) for i in range(topology.hosts)]
        self.starts.append(hosts)
        processes = []
        for host in hosts:
            (self.folder / f"host-{host.host}").mkdir(exist_ok=True)
            host.seen.touch()
            host.times.touch()
            processes.append(SERVER.Process(target=train, args=(host,)))
            processes[-1].start()
        return processes

    @property
    def begin(self) -> int:
        """The step after which the last start trains."""
        return self.starts[-1][0].begin

    @property
    def last(self) -> int:
        """The last step that a host of the last start has finished."""
        return max(host.last for host in self.starts[-1])

    def finish(self, topology: Topology) -> None:
        """Starts the run, and lets it come to its end."""
        self._end(self.start(topology), expected={0})

    def suffer(self, ends: str, after: int, topology: Topology, dice: random.Random) -> None:
        """Starts the run, and ends it once it has finished `after` steps.

        `kill -9` is to all hosts or to one, which the others miss; SIGTERM is to one.
        """
        processes = self.start(topology)
        deadline = time.monotonic() + PATIENCE
        while all(each.is_alive() for each in processes) and time.monotonic() < deadline:
            begun = self.starts[-1][0].seen.read_text().count("\n") > 1
            if begun and self.last >= self.begin + after:
                break
            time.sleep(0.005)
        hangs = time.monotonic() >= deadline
        expected = {-signal.SIGKILL}
        if ends == "SIGTERM":
            expected = {128 + signal.SIGTERM}
            dice.choice(processes).terminate()
        else:
            all_or_one = [processes, *([each] for each in processes)]
            victims = dice.choice(all_or_one) if len(processes) > 1 else processes
            if len(victims) < len(processes):
                expected |= {1}
            for each in victims:
                each.kill()
        self._end(processes, expected={None} if hangs else expected)
        self.states.note(self.begin, topology)

    def _end(self, processes: Sequence[BaseProcess], *, expected: set[int]) -> None:
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.ended = time.monotonic()
        if hanging := [each for each in processes if each.is_alive()]:
            for each in hanging:
                each.kill()
        statuses = {process.exitcode for process in processes}
        outputs = [host.output.read_text() for host in self.starts[-1]]
        if hanging or not statuses <= expected or any("Traceback" in text for text in outputs):
            raise BrokenError(f"start {len(self.starts) - 1} ended with {statuses}: {outputs}")

    def restores(self) -> str:
        """Returns all that the last start logged about local sets and damaged checkpoints."""
        text = self.starts[-1][0].output.read_text()
        sets = re.findall(r"local set of step (\d+): (used|passed over)(?:: (.*)\.)?", text)
        damaged = re.findall(r"/(\d+): damaged: (.*?); it is now", text)
        lines = [f"set {step} {what} {why}".strip() for step, what, why in sets]
        return "; ".join(lines + [f"checkpoint {step}: {why[:40]}" for step, why in damaged])

    def stream(self) -> list[str]:
        """Returns the pixels' sums of all images that were trained on, in their order.

        Each start resumes at a batch; what the ones before had taken beyond it is lost.
        """
        batches: list[list[str]] = []
        for hosts in self.starts:
            each = [host.seen.read_text().split("\n")[1:-1] for host in hosts]
            if hosts[0].begin > len(batches):
                raise SystemExit(
                    f"{hosts[0].seen}: begins at batch {hosts[0].begin}, after {len(batches)}."
                )
            batches[hosts[0].begin :] = [
                " ".join(rows).split() for rows in zip(*each, strict=False)
            ]
        return [image for batch in batches[: self.steps] for image in batch]

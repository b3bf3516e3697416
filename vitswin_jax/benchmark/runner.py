"""Runs of a case: each contestant in its own process, in turns, and the ratios of their times."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.benchmark.cases import Case, write_case
from vitswin_jax.benchmark.peaks import peak_flops
from vitswin_jax.benchmark.peers import PEERS
from vitswin_jax.benchmark.peers import __file__ as peers_file
from vitswin_jax.core.types import UserError

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""How far a peer's outputs may be from ours, as a share of their standard deviation."""
_ALIKE = {
    "JAX_TRACEBACK_FILTERING": "off",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}
_SHORTEST = 0.2  # seconds: a round takes as many calls as fill it


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who takes a turn: we, with fields of execution (`variant`), a peer, or our products alone."""

    name: str
    kind: str  # "ours", "products", or a key of PEERS
    python: str = sys.executable
    variant: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    checkouts: tuple[str, ...] = ()  # folders that the peer's interpreter imports from

    @property
    def reads(self) -> str | None:
        """The format of weights that it reads; None for whatever there is."""
        return PEERS[self.kind].reads if self.kind in PEERS else None

    @property
    def runs_program(self) -> bool:
        """Whether it runs our ONNX file."""
        return self.kind in PEERS and PEERS[self.kind].program

    def can_run(self, case: Case) -> bool:
        """Returns whether its library has the case's model, task and dtype."""
        if self.kind == "products":
            return case.task == "inference" and case.family == "vit"
        peer = PEERS.get(self.kind)
        return peer is None or (
            case.kind in peer.families and case.dtype in peer.dtypes and case.task in peer.tasks
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its process: checkouts first on the path, errors last in its log.

        Nobody finds what an earlier process compiled: "first" is a first time.
        """
        paths = [*self.checkouts, *filter(None, [os.environ.get("PYTHONPATH")])]
        path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
        return os.environ | path | _ALIKE

    def is_there(self) -> bool:
        """Returns whether its interpreter has what the peer needs."""
        if self.kind not in PEERS:
            return True
        script = (
            "from importlib.util import find_spec\n"
            f"raise SystemExit(not all(map(find_spec, {PEERS[self.kind].needs})))"
        )
        command = [self.python, "-c", script]
        try:
            done = subprocess.run(command, check=False, capture_output=True, env=self.environment)
        except OSError:
            return False
        return done.returncode == 0

    @property
    def command(self) -> list[str]:
        """The command that starts the worker."""
        if self.kind in PEERS:
            return [self.python, str(Path(peers_file).with_name("__main__.py")), self.kind]
        return [self.python, "-m", "vitswin_jax.benchmark.ours", self.kind]


class Worker:
    """A contestant's process; it has done its job once, and repeats it when asked."""

    def __init__(
        self,
        contestant: Contestant,
        job: Mapping[str, Any],
        folder: Path,
        watch: Callable[[subprocess.Popen], object] = lambda process: None,
    ) -> None:
        """Starts it and waits for its first call; raises UserError with its last words.

        `watch` is given the process.
        """
        self.name = contestant.name
        self._outputs = folder / f"{self.name}.npy"
        self._errors = folder / f"{self.name}.log"
        with self._errors.open("w") as errors:
            self._process = process = subprocess.Popen(
                contestant.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=contestant.environment,
            )
        watch(process)
        assert process.stdin is not None and process.stdout is not None  # as both are pipes
        self._questions, self._answers = process.stdin, process.stdout
        job = {**job, "variant": dict(contestant.variant), "outputs": str(self._outputs)}
        self.facts = self.ask(**job)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Returns the answer to a question."""
        try:
            self._questions.write(json.dumps(question) + "\n")
            self._questions.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.close()
            last = self._errors.read_text().strip().splitlines()[-1:]
            raise UserError(f"{self.name}: its process ended: {' '.join(last) or 'no message'}")
        return json.loads(answer)

    @property
    def has_outputs(self) -> bool:
        """Whether it has done its first call."""
        return self._outputs.exists()

    @property
    def outputs(self) -> np.ndarray:
        """The first call's logits; of training, the losses before and after the first update."""
        return np.load(self._outputs)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
        self._process.wait()
        self._answers.close()


def run_case(
    case: Case,
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    trace: Path | None = None,
    strict: bool = True,
) -> list[dict[str, Any]]:
    """Returns the results of `measure`, once per format of weights that contestants read.

    The first contestant is the one that all others are compared with, and takes part in each.
    """
    first, *others = [one for one in contestants if one.can_run(case)]
    forms = dict.fromkeys(other.reads for other in others if other.reads) or {"native": None}
    groups = {form: [first] for form in forms}
    for other in others:
        groups[other.reads or next(iter(forms))].append(other)
    results = []
    for form, group in groups.items():
        with tempfile.TemporaryDirectory() as folder:
            program = any(one.runs_program for one in group)
            job = write_case(case, form, Path(folder), program=program)
            results.append(
                measure(case, job, group, Path(folder), rounds=rounds, trace=trace, strict=strict)
            )
    return results


def measure(
    case: Case,
    job: Mapping[str, Any],
    contestants: Sequence[Contestant],
    folder: Path,
    *,
    rounds: int,
    trace: Path | None,
    strict: bool = True,
) -> dict[str, Any]:
    """Returns a case's facts and, by contestant, seconds a call, one number a round.

    The order of turns alternates, and a first round is not counted. If `strict`, raises UserError
    for a worker that ends early, and for outputs that differ from the first contestant's by more
    than `TOLERANCE`. Otherwise the others are measured without it, and `refused` has its line.
    """
    workers: list[Worker] = []
    distances: dict[str, float | None] = {}
    refused: dict[str, str] = {}
    try:
        for one in contestants:
            try:
                workers.append(Worker(one, job, folder))
                outputs = {worker.name: worker.outputs for worker in (workers[0], workers[-1])}
                distances |= differences(case, [contestants[0], one], outputs)
            except UserError as error:
                if strict or one is contestants[0]:
                    raise
                refused[one.name] = str(error)
                for worker in [worker for worker in workers if worker.name == one.name]:
                    worker.close()
                    workers.remove(worker)
        runs: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
        calls = {worker.name: 1 for worker in workers}
        for number in range(rounds + 1):
            for worker in workers if number % 2 else workers[::-1]:
                answer = worker.ask(calls=calls[worker.name])
                if number:
                    runs[worker.name].append(answer)
                else:
                    calls[worker.name] = max(1, math.ceil(_SHORTEST / answer["wall"]))
        peaks = {worker.name: worker.ask()["peak_bytes"] for worker in workers}
        if trace is not None:
            workers[0].ask(trace=str(trace))
    finally:
        for worker in workers:
            worker.close()
    base = runs[workers[0].name]
    return {
        "title": case.title,
        "case": dataclasses.asdict(case),
        "pixels": math.prod(np.load(job["inputs"])["images"].shape[:3]),
        "flops": case.flops,
        "load": os.getloadavg()[0],
        "refused": refused,
        "contestants": {
            worker.name: worker.facts
            | {
                "wall": [run["wall"] for run in runs[worker.name]],
                "cpu": [run["cpu"] for run in runs[worker.name]],
                "peak_bytes": peaks[worker.name],
                "difference": distances[worker.name],
                "ours_to_it": compare(base, runs[worker.name]),
                "mfu": utilisation(case, worker.facts["device"], runs[worker.name]),
            }
            for worker in workers
        },
    }


def differences(
    case: Case,
    contestants: Sequence[Contestant],
    outputs: Mapping[str, np.ndarray],
    *,
    strict: bool = True,
) -> dict[str, float | None]:
    """Returns how far each one's outputs are from the first's, in standard deviations.

    Losses are compared by their size. `products` computes something else: None. If `strict`, raises
    UserError for more than `TOLERANCE`, and for what is no number.
    """
    name = contestants[0].name
    ours = outputs[name]
    unit = ours.std() if case.task == "inference" else np.abs(ours).max()
    found: dict[str, float | None] = {}
    for one in contestants:
        if one.kind == "products":
            found[one.name] = None
            continue
        found[one.name] = distance = float(np.abs(outputs[one.name] - ours).max() / unit)
        if strict and not distance <= TOLERANCE[case.dtype]:
            raise UserError(
                f"{case.title}: the outputs of {one.name} differ from those of {name} by "
                f"{distance:.2g} of their size; rounding is at most {TOLERANCE[case.dtype]:g}, "
                "so its time is not compared."
            )
    return found


def compare(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Returns our time over theirs: the median of the rounds' ratios, of minima, of CPU time.

    "cpu" is the ratio of the medians of process time over all threads, which other work on the
    machine touches least.
    """
    walls = [[run["wall"] for run in runs] for runs in (ours, theirs)]
    cpu = [statistics.median(run["cpu"] for run in runs) for runs in (ours, theirs)]
    return {
        "median": statistics.median(a / b for a, b in zip(*walls, strict=True)),
        "min": min(walls[0]) / min(walls[1]),
        "cpu": cpu[0] / cpu[1],
    }


def utilisation(case: Case, device: str, runs: Sequence[Mapping[str, float]]) -> float | None:
    """Returns the share of the chip's peak that the median round reached, or None."""
    peak = peak_flops(device, case.dtype)
    if peak is None:
        return None
    return case.flops / statistics.median(run["wall"] for run in runs) / peak

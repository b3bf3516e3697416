"""Goodput of a run over its whole life, from the log that each of its hosts writes.

Goodput is the time of training steps that were kept, divided by the time from the run's first start
to its end, as ml-goodput-measurement defines it. Steps that a later process of the run took again
were not kept. The log of a host, `goodput/host-N.jsonl` in the workdir, has rows of numbers
(`core.rows`): each has the seconds of every kind since the row before. A killed process leaves at
most half a row, which is skipped.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitswin_jax.core.rows import STEP, read_rows
from vitswin_jax.core.types import UserError, counted

FOLDER = "goodput"
"""The folder, in a workdir, of the hosts' logs."""

START, RESTORE, COMPILE = "start", "restore", "compile"
INPUT, DEVICE, EVALUATE, SAVE = "input", "device", "evaluate", "save"
SPENT = (START, RESTORE, COMPILE, INPUT, DEVICE, EVALUATE, SAVE)
"""The kinds of time of a process. Each second has one."""
WAIT = "wait"
"""The part of `DEVICE` in which the host only waited for its devices."""
TIME, BEGAN, FROM, ENDED = "time", "began", "from", "ended"
"""Unix time of a row; of the process's start; the step from which it trains; 1 after results."""
LOCAL = "local"
"""1 in the row of a save to the host's own disk, and with `FROM` of a restore from there."""

_LONGEST = 1e9  # seconds that one row may state; more is damage
Row = tuple[int, int, Mapping[str, float]]
"""The step before, the step, and seconds by kind."""

_POINTS = 200  # of a host's curve
_LEAST = 0.0005  # a smaller share of the time is not mentioned


def log_of(workdir: Path, host: int) -> Path:
    """Returns the path of a host's log."""
    return workdir / FOLDER / f"host-{host}.jsonl"


@dataclass
class Process:
    """One process of a run, from its start to its last row."""

    began: float
    """Unix time."""
    last: float
    """Unix time of the last row."""
    first_step: int | None = None
    """The step from which it trained; None for a process that ended before."""
    done: bool = False
    """Whether it ended with results."""
    rows: list[Row] = field(default_factory=list)
    stepped: float | None = None
    """Unix time of the row of its first step."""
    local_saves: int = 0
    """Saves to the host's own disk."""
    local_restores: int = 0
    """1 if it resumed from the host's own disk."""

    @property
    def last_step(self) -> int:
        """The last step that the log has."""
        return self.rows[-1][1] if self.rows else 0

    @property
    def trained(self) -> bool:
        """Whether it took a step."""
        return self.first_step is not None and self.last_step > self.first_step

    def spent(self, kind: str) -> float:
        """Returns the seconds of a kind."""
        return sum(seconds[kind] for *_, seconds in self.rows)

    def kept(self, until: int | None) -> float:
        """Returns the seconds of the steps up to `until`, of all steps if it is None."""
        return sum(_share(before, step, until) * row[DEVICE] for before, step, row in self.rows)


def _share(before: int, step: int, until: int | None) -> float:
    """Returns the share of the steps from `before` to `step` that are not after `until`."""
    if until is None or step <= until:
        return 1.0
    return max(0.0, (until - before) / (step - before)) if step > before else 0.0


@dataclass(frozen=True)
class Goodput:
    """Times of a run's life in seconds, and what interrupted it."""

    total: float
    """From the run's first start to its end, or to the last row of a run that trains."""
    productive: float
    """Of training steps that were kept."""
    repeated: float
    """Of training steps that were lost, and taken again."""
    down: float
    """Between a process's last row and the next process's start."""
    spent: Mapping[str, float]
    """By kind, without `DEVICE`, which is productive or repeated."""
    restarts: int
    steps_repeated: int
    recoveries: Sequence[float]
    """Of each restart, the seconds from the last row before it to its first new step."""
    starts: Sequence[float]
    """Of each process that trained, the seconds from its start to its first step."""
    local_saves: int
    """Saves to the hosts' own disks."""
    local_restores: int
    """Restarts from them."""

    @property
    def share(self) -> float:
        """The goodput, in [0, 1]."""
        return self.productive / self.total

    def __str__(self) -> str:
        """Returns a line such as "97.1 %: compile 41 s, 2 restarts, input 1.2 %"."""
        parts = [f"compile {_seconds(self.spent[COMPILE])}"]
        if self.restarts:
            parts.append(counted(self.restarts, "restart"))
        if self.steps_repeated:
            parts.append(f"{counted(self.steps_repeated, 'step')} repeated")
        if self.local_saves:
            parts.append(counted(self.local_saves, "local save"))
        if self.local_restores:
            parts.append(counted(self.local_restores, "local restore"))
        shares = {
            "input": self.spent[INPUT],
            "saves": self.spent[SAVE],
            "evaluations": self.spent[EVALUATE],
        }
        parts += [
            f"{name} {100 * seconds / self.total:.1f} %"
            for name, seconds in shares.items()
            if seconds >= _LEAST * self.total
        ]
        once = {
            "starts": self.spent[START],
            "restores": self.spent[RESTORE],
            "down": self.down,
            "repeated steps": self.repeated,
        }
        parts += [
            f"{name} {_seconds(seconds)}"
            for name, seconds in once.items()
            if seconds >= _LEAST * self.total
        ]
        if self.starts:
            middle = _seconds(statistics.median(self.starts))
            parts.append(f"from a start to the first step {middle}")
        if self.recoveries:
            middle = _seconds(statistics.median(self.recoveries))
            parts.append(f"from a stop to the next step {middle}")
        return f"{100 * self.share:.1f} %: {', '.join(parts)}"


def clock(seconds: float) -> str:
    """Returns a duration as hours, minutes and seconds, such as 2:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _seconds(seconds: float) -> str:
    """Returns a duration as text, such as 0.4 s, 41 s or 2:05:00."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 599.5:
        return f"{seconds:.0f} s"
    return clock(seconds)


def read_goodput(workdir: Path) -> Goodput | None:
    """Returns the goodput of a run; None where it has no log, as runs of older versions."""
    return goodput_of(read_processes(workdir, 0))


def read_processes(workdir: Path, host: int) -> list[Process]:
    """Returns the processes that a host's log has; [] where there is no log that can be read."""
    try:
        rows = [row for _, row in read_rows(log_of(workdir, host)).lines]
    except UserError:
        return []
    processes: list[Process] = []
    step = 0
    for row in rows:
        now = _number(row, TIME)
        if BEGAN in row or not processes:
            began = _number(row, BEGAN) if BEGAN in row else now
            processes.append(Process(began, max(began, now)))
        process = processes[-1]
        if FROM in row:
            process.first_step = step = row[STEP]
            process.local_restores = int(row.get(LOCAL) == 1)
        else:
            process.local_saves += int(row.get(LOCAL) == 1)
        before, step = min(step, row[STEP]), row[STEP]
        process.last = max(process.last, now)
        process.rows.append((before, step, {kind: _number(row, kind) for kind in (*SPENT, WAIT)}))
        if process.stepped is None and step > before:
            process.stepped = now
        process.done = row.get(ENDED) == 1
    for process in processes:
        _warm_up(process)
    return processes


def _warm_up(process: Process) -> None:
    """Counts the time by which a process's first step is longer than the others as compilation.

    A program that was just compiled is also loaded, and its first call makes buffers.
    """
    first = next((i for i, (before, step, _) in enumerate(process.rows) if step > before), 0)
    later = process.rows[first + 1 :]
    if steps := sum(step - before for before, step, _ in later):
        before, step, seconds = process.rows[first]
        mean = sum(row[DEVICE] for *_, row in later) / steps
        more = max(0.0, seconds[DEVICE] - mean * (step - before))
        moved = {DEVICE: seconds[DEVICE] - more, COMPILE: seconds[COMPILE] + more}
        process.rows[first] = before, step, {**seconds, **moved}


def _number(row: Mapping[str, Any], key: str) -> float:
    """Returns a number of a row, 0 where it has none or one that cannot be a time."""
    value = row.get(key) or 0.0
    limit = _LONGEST if key not in (TIME, BEGAN) else 10 * _LONGEST
    return float(value) if 0 <= value < limit else 0.0


def read_hosts(workdir: Path) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """Returns {host: {kind: [(step, seconds a step)]}} of a run that has several hosts.

    The kinds are `INPUT`, `DEVICE` and `SAVE`. A run of one host has none.
    """
    if not log_of(workdir, 1).exists():
        return {}
    hosts: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for host in itertools.count():
        rows = [row for process in read_processes(workdir, host) for row in process.rows]
        if not rows:
            break
        stride = max(1, len(rows) // _POINTS)
        parts = [rows[i : i + stride] for i in range(0, len(rows), stride)]
        hosts[host] = {kind: list(_per_step(parts, kind)) for kind in (INPUT, DEVICE, SAVE)}
    return hosts if len(hosts) > 1 else {}


def _per_step(parts: Sequence[Sequence[Row]], kind: str) -> Iterator[tuple[int, float]]:
    """Yields the last step of each part that has steps, and a kind's seconds a step."""
    seconds, steps = 0.0, 0
    for part in parts:
        seconds += sum(row[kind] for *_, row in part)
        steps += sum(step - before for before, step, _ in part)
        if steps:
            yield part[-1][1], seconds / steps
            seconds, steps = 0.0, 0


def goodput_of(processes: Sequence[Process]) -> Goodput | None:
    """Returns the goodput of the processes of a run, in their order; None for no time at all.

    The time after a process that ended with results counts as nothing until a later one trains.
    """
    lived: list[Process] = []
    for process in processes:
        if process.trained or not (lived and lived[-1].done):
            lived.append(process)
    kept, lost, steps, down, recoveries = 0.0, 0.0, 0, 0.0, []
    for i, process in enumerate(lived):
        later = [each.first_step for each in lived[i + 1 :] if each.first_step is not None]
        until = min(later, default=None)
        productive = process.kept(until)
        kept += productive
        lost += process.spent(DEVICE) - productive
        if until is not None and process.first_step is not None:
            steps += max(0, process.last_step - max(until, process.first_step))
    for before, after in itertools.pairwise(lived):
        if not before.done:
            down += max(0.0, after.began - before.last)
            if after.stepped is not None:
                recoveries.append(max(0.0, after.stepped - before.last))
    total = down + sum(process.last - process.began for process in lived)
    if total <= 0:
        return None
    return Goodput(
        total=total,
        productive=kept,
        repeated=lost,
        down=down,
        spent={
            kind: sum(process.spent(kind) for process in lived) for kind in SPENT if kind != DEVICE
        },
        restarts=len(lived) - 1,
        steps_repeated=steps,
        recoveries=recoveries,
        starts=[each.stepped - each.began for each in lived if each.stepped is not None],
        local_saves=sum(process.local_saves for process in lived),
        local_restores=sum(process.local_restores for process in lived),
    )

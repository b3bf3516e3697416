"""A host's log of its run's life, by which `core.goodput` measures it; nothing waits for it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax

from vitswin_jax.core.goodput import (
    BEGAN,
    COMPILE,
    DEVICE,
    ENDED,
    FROM,
    INPUT,
    LOCAL,
    SAVE,
    START,
    TIME,
    WAIT,
    log_of,
    read_goodput,
)
from vitswin_jax.core.rows import STEP
from vitswin_jax.core.terminal import logger
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.signals import StoppedError
from vitswin_jax.train.hosts.stragglers import Latency, Pace, Probe, SaveWaits, Stragglers, parse
from vitswin_jax.train.keep.timing import Laps

log = logger(__name__)

_OFTEN, _RARELY = 0.1, 1e-3
"""Seconds between two rows at least, and the share of the process's age between them.

So a row is never late by much of a run's time, and a week has 10,000 rows.
"""


class Compiling:
    """Seconds that the thread which makes it has traced, lowered and compiled, as JAX states them.

    One program's compilation may begin while another one is traced, so times are united.
    """

    def __init__(self) -> None:
        self._thread, self._spans = threading.get_ident(), list[tuple[float, float]]()
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def close(self) -> None:
        """Hears no more."""
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def take(self) -> float:
        """Returns the seconds since it was asked last."""
        seconds = sum((end - begin for begin, end in self._spans), 0.0)
        self._spans.clear()
        return seconds

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/") and threading.get_ident() == self._thread:
            end = time.monotonic()
            begin = end - duration_secs
            while self._spans and self._spans[-1][1] > begin:  # those within end before it
                begin = min(begin, self._spans.pop()[0])
            self._spans.append((begin, end))


class Journal:
    """The log of one process of a run; rows follow each other at `_OFTEN` and `_RARELY`.

    `laps` divides the process's time since `began`, on `time.monotonic`. A log that cannot be
    written is one warning. Without a workdir there is none, and only the laps are counted.
    """

    def __init__(self, workdir: Path | None = None, *, began: float | None = None) -> None:
        now = time.monotonic()
        self._began = now if began is None else began
        self.laps = Laps(since=self._began, count=self._count)
        self._workdir, self._host = workdir, jax.process_index()
        self._start = time.time() - (now - self._began)  # in Unix time
        self._age = 0.0  # at the last lap
        self._spent: dict[str, float] = {}
        self.totals: defaultdict[str, float] = defaultdict(float)
        """Seconds of each kind since the process began."""
        self._step, self._first = 0, True
        self._written = self._began
        self._file: IO[str] | None = None
        self._compiling: Compiling | None = None

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Writes the process's rows during the block, and at its end, how it ended."""
        self._compiling = Compiling()
        try:
            self._open()
            yield
        except BaseException as error:
            self._end(ended=0, says=isinstance(error, StoppedError))
            raise
        else:
            self._end(ended=1, says=True)
        finally:
            self._compiling.close()
            self._compiling = None

    def _open(self) -> None:
        """Begins the process's rows, on a line of their own after what a killed one left."""
        if self._workdir is None:
            return
        path = log_of(self._workdir, self._host)
        try:
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("a", buffering=1, encoding="utf-8")
            if path.stat().st_size and path.read_bytes()[-1:] != b"\n":
                self._file.write("\n")
        except OSError as error:
            self._give_up(error)
        self.laps.lap(START)
        self._write({BEGAN: round(self._start, 4)})

    def _end(self, *, ended: int, says: bool) -> None:
        self.laps.lap(SAVE)
        self._write({ENDED: ended})
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None
        if says and self._host == 0 and self._workdir is not None:
            log.info("goodput %s.", read_goodput(self._workdir))

    def begin(self, step: int, *, local: bool = False) -> None:
        """Notes that the process trains from `step` on, as read from a `local` set or not."""
        self._step = step
        self.laps.lap(START)
        marks: dict[str, float] = {FROM: step}
        self._write(marks | {LOCAL: 1} if local else marks)

    def advance(self, step: int) -> None:
        """Notes a step, which was just sent; writes a row if one is due, and at the first step."""
        self._step = step
        now = time.monotonic()
        if self._first or now - self._written > max(_OFTEN, _RARELY * (now - self._began)):
            self._first = False
            self._written = now
            self._write({})

    def saved_locally(self) -> None:
        """Notes a save to the host's own disk."""
        self._write({LOCAL: 1})

    def settle(self) -> None:
        """Writes a row, as before a checkpoint of the step: what it has is then known."""
        self._write({})

    def _count(self, kind: str, seconds: float, *, waited: bool) -> None:
        """Counts a lap."""
        self._age += seconds
        if self._compiling is not None:
            compiling = min(self._compiling.take(), seconds)
            self._spent[COMPILE] = self._spent.get(COMPILE, 0.0) + compiling
            seconds -= compiling
        for each in (kind, WAIT) if waited else (kind,):
            self._spent[each] = self._spent.get(each, 0.0) + seconds
            self.totals[each] += seconds

    def _write(self, marks: dict[str, float]) -> None:
        spent, self._spent = self._spent, {}
        if self._file is None:
            return
        row = {STEP: self._step, TIME: round(self._start + self._age, 4)} | marks
        row |= {kind: round(seconds, 6) for kind, seconds in spent.items() if seconds}
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Warns that the log ends here; the run does not."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        path = log_of(self._workdir or Path(), self._host)
        log.warning("cannot write %s: %s; goodput is not known.", path, error.strerror or error)


class Hosts:
    """Compares the hosts of a run, where there are several; `start_step` is where it begins."""

    def __init__(self, journal: Journal, start_step: int) -> None:
        self._journal, self._start = journal, start_step
        self._latency, self._stragglers = Latency(), Stragglers()
        self._waits, self._probe = SaveWaits(), Probe()

    def close(self) -> None:
        """Ends the comparison."""
        self._waits.close()

    def settled(self) -> None:
        """Probes the devices, which have nothing to do now, before a save or an evaluation."""
        if watch.current is not None:
            self._probe.measure()

    def see(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Sends this host's sums with its next heartbeat; host 0 looks for a straggler."""
        if (hosts := watch.current) is None:
            return
        spent = self._journal.totals
        device = spent[DEVICE] - spent[WAIT]
        waits = self._waits.seconds + self._probe.spent
        wait, save = spent[WAIT] + waits, max(0.0, spent[SAVE] - waits)
        sums = spent[INPUT], device, save, wait, self._latency.least, *self._probe.seconds
        hosts.pace = Pace(step - self._start, *sums).as_text()
        for result in list(metrics.values())[:1]:
            self._latency.measure(result)
        paces = {host: parse(text) for host, text in hosts.paces().items()}
        begun = {host: pace for host, pace in paces.items() if pace is not None}
        if begun and len(begun) == len(paces):
            self._stragglers.see(step, begun, time.monotonic())

"""Stragglers: hosts that make the others wait, found by where each host's time goes.

In data parallel training all hosts take equally long for a step, for each waits for the slowest. So
hosts are compared by what they do themselves: wait for input, send steps to their devices, save. A
host's sums travel with its heartbeats (`train.hosts.watch`), so that nothing waits for them, and
host 0 compares them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vitswin_jax.core.goodput import DEVICE, INPUT, SAVE
from vitswin_jax.core.terminal import logger

log = logger(__name__)

JUDGED = 10.0
"""Seconds of training by which hosts are compared; a straggler is one twice in a row."""
_LEAST_STEPS = 3  # that each host has to take meanwhile
_EXCESS = 0.2  # of a step's time, by which a host's own work must be longer than the others'
_SLACK = 0.2  # of a step's time; a host that waits longer for its devices holds up nobody
_LATENCIES = 8  # that are remembered

WAITED = "/vitswin_jax/save/waited_for_the_one_before"
"""The event, in `jax.monitoring`, of a save that waits until the one before is written."""
_SYNCED = "/jax/orbax/write/checkpoint_start_sync_duration_secs"
_WRITTEN = "/jax/checkpoint/write/async/commit_duration_sec"
"""Orbax's events: of a save's first barrier, and of what one host wrote, without barriers."""

_PROBES = 5  # by which devices are compared
_SLOW = 1.3  # times the other hosts' probes, above which all of a host's must be
_CPU, _ACCELERATOR = (384, 8, jnp.float32), (2048, 64, jnp.bfloat16)
"""Channels of a probe's matrices, products of them, and their type: some milliseconds' work."""

_CAUSES = {
    INPUT: "waits {} a step for input",
    DEVICE: "takes {} a step to send it to its devices",
    SAVE: "saves for {} a step",
}
_PROBED = "needs {} for a product of matrices on its devices"


class Pace(NamedTuple):
    """A host's work since it began to train: steps, and seconds of each kind."""

    steps: int
    input: float
    device: float
    """Sending steps, without waiting for the devices."""
    save: float
    """Saving, without waiting for other hosts."""
    wait: float
    """Waiting for the devices, or for other hosts."""
    compute: float
    """The least time, of late, from a step's dispatch to its result; not a sum."""
    probe: float = 0.0
    """The median of the last probes of its devices, 0 before there are `_PROBES`."""
    least_probe: float = 0.0

    def since(self, before: Pace) -> Pace:
        """Returns the work after an earlier pace of the host."""
        took, device, save, wait = (
            now - then for now, then in zip(self[1:5], before[1:5], strict=True)
        )
        return Pace(self.steps - before.steps, took, device, save, wait, *self[5:])

    @property
    def step(self) -> float:
        """Seconds that a step took."""
        return (self.input + self.device + self.save + self.wait) / self.steps

    def as_text(self) -> str:
        """Returns it as a heartbeat has it."""
        return json.dumps([self.steps, *(round(seconds, 5) for seconds in self[1:])])


def parse(text: str) -> Pace | None:
    """Returns the pace that a heartbeat has, None for one that has none yet."""
    return Pace(*json.loads(text)) if text else None


class Straggler(NamedTuple):
    """A host that makes the others wait, and why."""

    host: int
    cause: str
    """`INPUT`, `DEVICE` or `SAVE`."""
    factor: float
    """How many times as long a step takes as without it."""
    seconds: float
    """That it spends on the cause in each step."""
    others: float
    """The median of that over the other hosts."""
    does: str

    def __str__(self) -> str:
        what = self.does.format(_short(self.seconds))
        return (
            f"host {self.host} makes a step {self.factor:.1f} times as long, by its {self.cause}: "
            f"it {what}, the other hosts {_short(self.others)}; see Stragglers in docs/hosts.md."
        )


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def judge(hosts: Mapping[int, Pace]) -> Straggler | None:
    """Returns the host that holds up the others most, None where none does.

    `hosts` has what each did meanwhile, two hosts at least. A host that still waits for its devices
    holds up nobody with its input: they are busy meanwhile.
    """
    step = statistics.median(pace.step for pace in hosts.values())
    compute = min(pace.compute for pace in hosts.values())
    found = []
    for host, pace in hosts.items():
        for cause, does in _CAUSES.items():
            own = getattr(pace, cause) / pace.steps
            others = statistics.median(
                getattr(each, cause) / each.steps for at, each in hosts.items() if at != host
            )
            late = cause == SAVE or pace.wait / pace.steps < _SLACK * step
            if late and own - others > _EXCESS * step:
                without = max(step - (own - others), min(compute, step), 1e-9)
                found.append(Straggler(host, cause, step / without, own, others, does))
    if not found:
        return _slow_device(hosts)
    return max(found, key=lambda each: each.seconds - each.others)


def _slow_device(hosts: Mapping[int, Pace]) -> Straggler | None:
    """Returns the host of which every probe took longer than the others' do."""
    for host, pace in hosts.items():
        others = [each.probe for at, each in hosts.items() if at != host]
        if min(others) > 0 and pace.least_probe > _SLOW * max(others):
            middle = statistics.median(others)
            return Straggler(host, DEVICE, pace.probe / middle, pace.probe, middle, _PROBED)
    return None


class Stragglers:
    """Warns of a straggler, once for each host and cause; on host 0."""

    def __init__(self) -> None:
        self._then: dict[int, Pace] = {}
        self._since = 0.0
        self._suspect: tuple[int, str] | None = None
        self._told: set[tuple[int, str]] = set()

    def see(self, step: int, paces: Mapping[int, Pace], now: float) -> None:
        """Takes all hosts' newest paces, at a time in seconds."""
        if self._then.keys() != paces.keys():
            self._then, self._since = dict(paces), now
            return
        if now - self._since < JUDGED:
            return
        spent = {host: pace.since(self._then[host]) for host, pace in paces.items()}
        if min(pace.steps for pace in spent.values()) < _LEAST_STEPS:
            return
        self._then, self._since = dict(paces), now
        found = judge(spent) if len(spent) > 1 else None
        which = None if found is None else (found.host, found.cause)
        if which is not None and which == self._suspect and which not in self._told:
            self._told.add(which)
            log.warning("step %d: %s", step, found)
        self._suspect = which


class Probe:
    """The time that this host's devices take for products of matrices, when they are idle.

    In a step the devices of all hosts wait for the slowest one, which so cannot be told there.
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_PROBES)
        self._inputs: list[jax.Array] = []
        self._count = 0
        self.spent = 0.0
        """Seconds, of all probes."""

    @property
    def seconds(self) -> tuple[float, float]:
        """The median and the least of the last probes, zeros before there are enough."""
        if len(self._seen) < _PROBES:
            return 0.0, 0.0
        return statistics.median(self._seen), min(self._seen)

    def measure(self) -> None:
        """Probes the devices; the first time only compiles."""
        began = time.monotonic()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # where no memory is left
            if first := not self._inputs:
                cpu = jax.default_backend() == "cpu"
                size, self._count, dtype = _CPU if cpu else _ACCELERATOR
                matrix = np.full((size, size), 1 / size, dtype)  # whose square is itself
                self._inputs = [jax.device_put(matrix, device) for device in jax.local_devices()]
            jax.block_until_ready([_products(each, self._count) for each in self._inputs])
            if not first:
                self._seen.append(time.monotonic() - began)
        self.spent += time.monotonic() - began


@functools.partial(jax.jit, static_argnums=1)
def _products(matrix: jax.Array, count: int) -> jax.Array:
    return lax.fori_loop(0, count, lambda _, product: product @ matrix, matrix)


class SaveWaits:
    """The seconds of a host's saves in which it waited for other hosts, as events state them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._written = 0.0  # by this host, of the checkpoint before
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def close(self) -> None:
        """Hears no more."""
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _WRITTEN:
            self._written = duration_secs
        elif event == WAITED:
            self.seconds += max(0.0, duration_secs - self._written)
            self._written = 0.0
        elif event == _SYNCED:
            self.seconds += duration_secs


class Latency:
    """The time from a step's dispatch to its result, which a thread of its own waits for."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_LATENCIES)
        self._thread: threading.Thread | None = None

    @property
    def least(self) -> float:
        """The least of the last few, 0.0 before there is one."""
        return min(self._seen, default=0.0)

    def measure(self, result: Any) -> None:
        """Measures from now until an array of a step is there, unless an earlier one is not."""
        if self._thread is None or not self._thread.is_alive():
            args = result, time.monotonic()
            self._thread = threading.Thread(target=self._wait, args=args, daemon=True)
            self._thread.start()

    def _wait(self, result: Any, sent: float) -> None:
        with contextlib.suppress(Exception):  # of a run that fails, which its loop raises
            result.block_until_ready()
            self._seen.append(time.monotonic() - sent)

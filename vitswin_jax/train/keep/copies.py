"""Copies of the hosts' local sets on the disks of their neighbours, and the way back."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.placement import SLICE
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.join import gather
from vitswin_jax.train.hosts.neighbour import (
    PATIENCE,
    Depot,
    Peer,
    RefusedError,
    get,
    put,
    reason_of,
)
from vitswin_jax.train.keep.local_file import bytes_of
from vitswin_jax.train.keep.stored import trees_of
from vitswin_jax.train.keep.whole import Found, keep_newest, path_in
from vitswin_jax.train.state import TrainState

log = logger(__name__)

KEPT = 2
"""Sets that a host keeps of each host; it writes one more before it removes the oldest."""
_HEADER = 16 << 20  # bytes that a file may have besides its arrays; of 1,000 arrays it has 0.4 MB


class Copies:
    """The depots of all hosts: each host's newest set is also kept by its neighbour.

    A thread sends a set that `offer` names, and no step waits for it. A set that is offered while
    the one before is on its way replaces the one that waits.
    """

    def __init__(self, run: Path, layout: TrainState) -> None:
        """Opens the depot of this host for the folder of a run; all hosts call it."""
        self._here, size = jax.process_index(), bytes_of(trees_of(layout)) + _HEADER
        self._depot = _open(run)
        peer = Peer("", "") if self._depot is None else self._depot.peer
        facts = {"peer": peer, "bytes": size, "slice": _slice_of(layout, self._here)}
        hosts = [json.loads(text) for text in gather(json.dumps(facts))]
        self._peers = [Peer(*host["peer"]) for host in hosts]
        machines = [peer.address.rpartition(":")[0] for peer in self._peers]
        keepers = neighbours([host["slice"] for host in hosts], machines)
        self.keeper, self._limit = keepers[self._here], size
        if self._depot is not None:
            kept_here = [host for host, keeper in enumerate(keepers) if keeper == self._here]
            self._depot.limits = {host: hosts[host]["bytes"] for host in kept_here}
        self._changed = threading.Condition()
        self._next: tuple[int, Path] | None = None
        self.idle = True
        """Whether no set waits or is on its way."""
        self._closed = self._warned = False
        threading.Thread(target=self._send_all, name="copies", daemon=True).start()

    def offer(self, step: int, path: Path) -> None:
        """Has the neighbour keep a set of this host soon; waits for nothing."""
        with self._changed:
            self._next, self.idle = (step, path), False
            self._changed.notify()

    def fetch(self, found: Found) -> str:
        """Writes this host's file of a set, from the host that has it; returns why not, or ""."""
        at, host = found.gets[self._here]
        try:
            found.path.parent.mkdir(parents=True, exist_ok=True)
            get(self._peers[at], found.path, host=host, step=found.step, limit=self._limit)
        except (OSError, UserError, RefusedError) as error:
            return f"cannot be had from host {at}: {reason_of(error)}"
        return ""

    def close(self) -> None:
        """Ends all connections; a copy that is on its way is not kept."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._depot is not None:
            self._depot.close()

    def _send_all(self) -> None:
        since: float | None = None  # when the neighbour did not answer for the first time
        while True:
            with self._changed:
                self.idle = self._next is None
                self._changed.wait_for(lambda: self._closed or self._next)
                if self._closed or self._next is None:
                    return
                step, path = self._next
                self._next = None
            began = time.monotonic()
            try:
                put(self._peers[self.keeper], path, host=self._here, step=step)
                since = None
            except RefusedError as error:
                self._warn(step, reason_of(error))
            except (OSError, ValueError) as error:
                since = began if since is None else since
                if time.monotonic() - since >= PATIENCE:  # else it may be the end of that host
                    self._warn(step, reason_of(error))

    def _warn(self, step: int, reason: str) -> None:
        if self._warned or self._closed:
            return
        self._warned = True
        log.warning(
            "local set of step %d: host %d, which keeps the copies of host %d, has none: %s; "
            "training continues, without copies if this lasts (run.local_copies).",
            step,
            self.keeper,
            self._here,
            reason,
        )


def neighbours(slices: Sequence[Any], machines: Sequence[Any]) -> list[int]:
    """Returns the host that keeps the sets of each host: one that is not lost together with it.

    `slices` and `machines` have a name for each host. It is a host of the next slice; of one slice
    one of the next machine; of one machine the next host.

    >>> neighbours([0, 0, 1, 1], ["a", "b", "c", "d"])
    [2, 3, 0, 1]
    >>> neighbours([0, 0, 0], ["a", "b", "c"])
    [1, 2, 0]
    """
    groups = next(
        (names for names in (slices, machines) if len(set(names)) > 1), range(len(slices))
    )
    members: dict[Any, list[int]] = {}
    for host, name in enumerate(groups):
        members.setdefault(name, []).append(host)
    order = list(members.values())
    keeper = {
        host: order[(turn + 1) % len(order)] for turn, group in enumerate(order) for host in group
    }
    return [
        keeper[host][members[groups[host]].index(host) % len(keeper[host])]
        for host in range(len(slices))
    ]


def _open(run: Path) -> Depot | None:
    """Returns the depot of this host; None where it cannot listen, as its neighbour will say."""
    if watch.current is None:
        return None
    try:
        return Depot(
            watch.current.own_ip(),
            functools.partial(path_in, run),
            functools.partial(keep_newest, run, count=KEPT),
        )
    except OSError:
        return None


def _slice_of(layout: TrainState, host: int) -> int:
    """Returns the slice of a host: the index of its devices on the mesh's first axis, if any."""
    mesh = jax.tree.leaves(layout.params)[0].sharding.mesh
    if SLICE not in mesh.axis_names:
        return 0
    hosts = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return int(np.argwhere(hosts == host)[0][mesh.axis_names.index(SLICE)])

"""A run's hold on its workdir in an object store, which has no locks: an object that beats.

The process that trains writes it every `PERIOD` seconds. One that does not beat for `PATIENCE` has
ended, however that ended; clocks are not compared. A process whose object another one has written
stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from vitswin_jax.core.json import parse_json
from vitswin_jax.core.store import Store
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.workdir import STOP
from vitswin_jax.weights.stored import LEASE

log = logger(__name__)

PERIOD, PATIENCE = 5.0, 25.0
"""Seconds between two beats, and without one after which the run's process has ended."""
_SCHEMA = {
    "type": "object",
    "required": ["copy", "beat", "trains"],
    "properties": {
        "copy": {"type": "string"},
        "beat": {"type": "integer"},
        "trains": {"type": "boolean"},
        "pid": {"type": "integer"},
        "host": {"type": "string", "maxLength": 300},
        "since": {"type": "string", "maxLength": 60},
    },
}


class Lease:
    """The hold of this process, from `take` to `give_up`."""

    def __init__(self, store: Store, on_stop: Callable[[], None]) -> None:
        """`on_stop` is called where `vitswin stop` asks the run to end, or another run has it."""
        self._store, self._on_stop = store, on_stop
        self._state: dict[str, Any] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._silent = False
        self.lost: str | None = None
        """The name of the process that has taken the workdir over."""

    @property
    def copy(self) -> str:
        """The name of the copy for which the workdir is held."""
        return str(self._state["copy"])

    def owner(self) -> str | None:
        """Returns the copy of the run that wrote last to the store; None where none has."""
        state = read_lease(self._store)
        return None if state is None else str(state["copy"])

    def take(self, copy: str) -> None:
        """Holds the workdir for a copy, by its name; waits until another one's process has ended.

        Raises UserError where it has not.
        """
        state = read_lease(self._store)
        if state is not None and state["trains"] and state["copy"] != copy:
            self._check_ended(state)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        us = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        self._state = {"copy": copy, "beat": 0, "trains": True, **us}
        self._write()
        self._store.remove([STOP])
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """Ends the hold."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._state and self.lost is None:
            self._state["trains"] = False
            self._write()

    def _check_ended(self, state: dict[str, Any]) -> None:
        log.info(
            "%s: was held by %s; this run waits up to %d s for a sign of it.",
            self._store.url,
            _named(state),
            PATIENCE,
        )
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            time.sleep(PERIOD / 5)
            now = read_lease(self._store)
            if now is None or not now["trains"]:
                return
            if (now["copy"], now["beat"]) != (state["copy"], state["beat"]):
                raise UserError(
                    f"{self._store.url} is in use by {_named(now)}; wait until it has ended, stop "
                    "it, or choose another --workdir."
                )

    def _write(self) -> None:
        self._store.write(LEASE, (json.dumps(self._state) + "\n").encode())

    def _beat(self) -> None:
        while not self._end.wait(PERIOD):
            try:
                now = read_lease(self._store)
                if now is not None and now["copy"] != self._state["copy"]:
                    self.lost = _named(now)
                    log.warning(
                        "%s: %s has taken it over; this run ends.", self._store.url, self.lost
                    )
                    self._on_stop()
                    return
                self._state["beat"] += 1
                self._write()
                if self._store.read(STOP) is not None:
                    self._on_stop()
                    self._store.remove([STOP])
                self._silent = False
            except UserError as error:
                if not self._silent:  # `Mirror` reports it too where something is to be sent
                    log.info("%s", error)
                self._silent = True


def read_lease(store: Store) -> dict[str, Any] | None:
    """Returns who holds a workdir or held it last; None where nobody has."""
    text = store.read(LEASE)
    if text is None:
        return None
    return parse_json(text, _SCHEMA, origin=f"{store.url}/{LEASE}")


def ask_to_stop(url: str) -> None:
    """Asks the run of a workdir in a store to end; raises UserError where none takes notice."""
    store = Store(url)
    state = read_lease(store)
    if state is None:
        raise UserError(f"{url}: is no workdir of a run, which has a {LEASE}.")
    if state["trains"]:
        store.write(STOP, b"")
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            time.sleep(PERIOD / 5)
            if store.read(STOP) is None:
                return
        store.remove([STOP])
    raise UserError(f"{url}: no run trains there now; its weights are its newest already.")


def _named(state: dict[str, Any]) -> str:
    return f"process {state.get('pid')} on {state.get('host')} since {state.get('since')}"

"""A watch over the hosts of a run, which ends all when one fails, is lost, or is asked to stop.

A host that waits for another in a collective waits for ever, or until JAX's heartbeats end it with
a fatal error and a dump of the stack. So each host has two more threads, which cost the loop
nothing: one sends heartbeats and receives the other hosts' messages; one watches the first.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from vitswin_jax.core.signals import end
from vitswin_jax.core.terminal import printable
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.meeting import Meeting
from vitswin_jax.train.hosts.port import connect

_WORDS = "vitswin_jax/word/"
_SIGNS = "vitswin_jax/alive/"
_STOPS, _SAVES = "vitswin_jax/stop/", "vitswin_jax/save/"
_GRACE = 1.0  # seconds for a host to end by an error of its own, when all fail alike
_LINGER = 3.0  # seconds that host 0, who keeps the store, lets the others read it
_PATIENCE = 3.0  # seconds for the store to take what a host says that ends at once
_FAILS = "status"  # the key of a word that ends all hosts

current: Watch | None = None
"""The watch of this process, one of several hosts; None on one host."""


class Watch:
    """Stops and ends this process, one of several hosts, with the others.

    `client` is the coordination service's at `address`, `lost_after` is in seconds. The hosts say
    words, which all hear in one order: None, that all ends well; `stop` with a signal's number, and
    `save`, which call a meeting; `at`, the place of one; and a `line` with a `status`, by which
    each host ends.
    """

    def __init__(
        self, client: Any, address: str, host: int, hosts: int, *, lost_after: float
    ) -> None:
        self._client, self._address, self._host, self._hosts = client, address, host, hosts
        self._lost_after, self._period = lost_after, min(1.0, lost_after / 10)
        self._seen: dict[str, tuple[str, float]] = {}  # each host's last sign, and since when
        self._heard = 0  # words
        self._answered = time.monotonic()  # when the store did last
        self._stood = 0.0  # seconds that this process did not run, at most at once
        self._left = threading.Event()
        self._speaks = threading.Lock()  # held by who ends this process
        self._place = 0  # that the loop has come to
        meetings = (Meeting(client, folder, host, hosts) for folder in (_STOPS, _SAVES))
        self._stops, self._saves = meetings
        self.stop: int | None = None
        """The number of the signal that asked any host to stop."""
        self.pace = ""
        """A line about this host's work, which host 0 is given with the next sign of life."""
        for run in (self._watch, self._listen):
            self._thread = threading.Thread(target=run, name="hosts", daemon=True)
            self._thread.start()

    def leave(self) -> None:
        """Ends the watch, as all hosts do now."""
        self._speaks.acquire()
        self._left.set()
        self._say(None)
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tells the other hosts that this one ends with an error of its own.

        What JAX raises may come of a lost host, and then ends with the line that says so.
        """
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError) and not isinstance(
            error, UserError
        ):
            self._thread.join(self._lost_after + 4 * self._period)
        self._speaks.acquire()
        self._left.set()
        lines = str(error).strip().splitlines() or [""]
        line = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
        self._say_in_time({"line": f"host {self._host}: {line}", _FAILS: 1, "waits": True})
        self._thread.join(_PATIENCE)

    def end_all(self, line: str, status: int) -> NoReturn:
        """Ends all hosts at once, this one too, with a line and a status."""
        line = f"host {self._host}: {line}"
        self._say_in_time({"line": line, _FAILS: status})
        self._thread.join(_PATIENCE)  # which hears it and ends the process, if the store answers
        self._speaks.acquire(timeout=_PATIENCE)
        end(line, status)

    def ask_to_stop(self, number: int) -> None:
        """Tells all hosts to stop at the same place, for a signal."""
        self._say({"stop": number})

    def stops_here(self) -> bool:
        """Returns whether to stop at this place; every host asks at the same places.

        The hosts stop at the first place that none has passed when all have heard of the stop.
        """
        self._place += 1
        return self._stops.is_at(self._place)

    def saves_here(self, step: int, *, due: bool) -> bool:
        """Returns whether all hosts save after this step; every host asks after each step.

        Where it is `due` on host 0, the hosts save after the first step that none has passed when
        all have heard of it. They save together, so that all have before the next is due.
        """
        if due and self._host == 0 and not self._saves.asked:
            self._saves.asked = True
            self._say({"save": True})
        here = self._saves.is_at(step)
        if here:
            self._saves.adjourn()
        return here

    def paces(self) -> dict[int, str]:
        """Returns the newest line of each host, on host 0; elsewhere none."""
        seen = dict(self._seen)
        return {int(host): sign.partition(" ")[2] for host, (sign, _) in seen.items()}

    def own_ip(self) -> str:
        """Returns this host's address on its way to host 0; raises OSError where there is none."""
        with connect(self._address, timeout=_PATIENCE) as probe:
            return str(probe.getsockname()[0])

    def lose(self) -> NoReturn:
        """Ends this process where JAX's own client would."""
        if self._left.is_set() or not self._speaks.acquire(blocking=False):
            time.sleep(2 * _PATIENCE)  # in which another thread ends it
            os._exit(1)
        self._end(self._failed())

    def _listen(self) -> None:
        """Gives signs of life and hears words, until one ends it."""
        for sign in itertools.count():
            word = self._hear(str(sign))
            if word is None:
                self._left.set()
                return
            self._meet(word)
            if _FAILS in word:
                if word.get("waits"):
                    time.sleep(_GRACE)
                if self._speaks.acquire(blocking=False):
                    self._end(word)
                return

    def _hear(self, sign: str) -> Any:
        """Gives a sign of life, and returns the next word, or {} where there is none yet."""
        hurries = self._host == 0 and (self._stops.pending or self._saves.pending)
        waits = 0.1 if hurries else self._period
        try:
            sign = f"{sign} {self.pace}"
            self._client.key_value_set(f"{_SIGNS}{self._host}", sign, allow_overwrite=True)
            self._answered = time.monotonic()
            key = f"{_WORDS}{self._heard}"
            word = json.loads(self._client.blocking_key_value_get(key, int(1000 * waits)))
            self._heard += 1
            return word
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return self._failed()
        return self._look() if self._host == 0 else {}

    def _look(self) -> Any:
        """Looks for hosts that are silent; returns the word that says so, which it says to all."""
        now = time.monotonic()
        for key, sign in self._client.key_value_dir_get(_SIGNS):
            host = key.rsplit("/", 1)[1]
            if host not in self._seen or self._seen[host][0] != sign:
                self._seen[host] = sign, now
        silent = {host: now - then for host, (_, then) in self._seen.items()}
        if max(silent.values(), default=0.0) <= self._lost_after:
            return {}
        # Hosts that are lost together, as a slice is, are silent for about as long.
        lost = [host for host in sorted(silent, key=int) if silent[host] > self._lost_after / 2]
        word = self._lost(*lost)
        self._say(word)
        return word

    def _watch(self) -> None:
        """Ends the process where host 0, who keeps the store, does not answer for too long."""
        before = time.monotonic()
        while not self._left.wait(self._period):
            now = time.monotonic()
            if (gap := now - before - self._period) > 1.0:  # stopped, or suspended
                self._stood = max(self._stood, gap)
                self._answered += gap
                self._seen = {host: (sign, then + gap) for host, (sign, then) in self._seen.items()}
            before = now
            if now - self._answered > self._lost_after and self._speaks.acquire(blocking=False):
                self._end(self._lost("0"))

    def _say(self, word: Mapping[str, Any] | None) -> None:
        """Sends the next message, unless one that ends all was sent before."""
        for number in itertools.count(self._heard):
            key = f"{_WORDS}{number}"
            try:
                self._client.key_value_set(key, json.dumps(word))
                return
            except jax.errors.JaxRuntimeError as error:
                if "ALREADY_EXISTS" not in str(error):
                    return
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                said = json.loads(self._client.blocking_key_value_get(key, 1000))
                if said is None or _FAILS in said:
                    return

    def _say_in_time(self, word: Mapping[str, Any]) -> None:
        """Says a word, and waits no longer than `_PATIENCE` for a store that does not answer."""
        thread = threading.Thread(target=self._say, args=(word,), daemon=True)
        thread.start()
        thread.join(_PATIENCE)

    def _meet(self, word: Mapping[str, Any]) -> None:
        """Hears of meetings and of their places; on host 0, says where one is."""
        if "stop" in word and self.stop is None:
            self.stop = word["stop"]
            self._stops.call()
        if "save" in word:
            self._saves.call()
        for name, meeting in {"stop": self._stops, "save": self._saves}.items():
            if name == word.get("meeting"):
                meeting.agree(word["at"])
            elif self._host == 0 and meeting.pending and (at := meeting.collect()) is not None:
                self._say({"meeting": name, "at": at})

    def _end(self, word: Mapping[str, Any]) -> NoReturn:
        sys.stdout.flush()
        if word.get("waits"):
            with contextlib.suppress(jax.errors.JaxRuntimeError, RuntimeError):
                jax.distributed.shutdown()  # for which the failed host waits
        lingers = self._host == 0 and not word.get("waits")
        end(printable(word["line"]), word[_FAILS], linger=_LINGER if lingers else 0.0)

    def _lost(self, *hosts: str) -> dict[str, Any]:
        lost = f"host{'s' if len(hosts) > 1 else ''} {', '.join(hosts)}"
        if self._stood > self._lost_after / 2 and str(self._host) not in hosts:
            lost += f" while host {self._host} stood still for {self._stood:.0f} s"
        return {"line": LOST.format(lost), _FAILS: 1}

    def _failed(self) -> dict[str, Any]:
        """Returns the word for a service that has failed: with host 0, or by a second host."""
        if what_failed(self._host, self._address) == TWICE:
            return {"line": TWICE, _FAILS: 1}
        return self._lost("0")


def what_failed(host: int, address: str) -> str:
    """Returns a line for what has ended JAX's service, which is at an address of host 0's."""
    try:
        if host:
            connect(address, timeout=1).close()
    except OSError:
        return LOST.format("host 0")
    return TWICE


LOST = "lost {}; to resume from the last checkpoint, repeat the command on all hosts."
TWICE = (
    "two processes have joined as the same host, and the run cannot continue; give each its own "
    "--host_index, and each run a port of its own in --coordinator."
)

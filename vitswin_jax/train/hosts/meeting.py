"""A step at which all hosts do the same, agreed on without making their devices wait."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import jax


class Meeting:
    """The first place in the hosts' loops that none has passed when all have heard of it.

    Places are numbers that all hosts count alike. A host that hears of the meeting states the place
    after the one where it is, and does not pass it before the meeting's place is known: the largest
    that a host has stated. Host 0 collects them, through the key-value store of `client`.
    """

    def __init__(self, client: Any, folder: str, host: int, hosts: int) -> None:
        self._client, self._folder, self._host, self._hosts = client, folder, host, hosts
        self._turn = 0
        self._changed = threading.Condition()
        self._reached, self._limit = 0, 0
        self._place: int | None = None
        self._collected = False
        self.asked = False
        """Whether this host has called the meeting; the caller's to set."""
        self.called = False
        """Whether this host has heard of it."""

    @property
    def pending(self) -> bool:
        """Whether it was called, and its place is not known yet."""
        return self.called and self._place is None

    def call(self) -> None:
        """Hears of the meeting, and states how far the loop comes."""
        with self._changed:
            if self.called:
                return
            self.called, self._limit = True, self._reached + 1
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{self._key}{self._host}", str(self._limit))

    def collect(self) -> int | None:
        """Returns the meeting's place once, when all hosts have stated theirs; None otherwise."""
        if self._collected:
            return None
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            limits = [int(limit) for _, limit in self._client.key_value_dir_get(self._key)]
            if len(limits) == self._hosts:
                self._collected = True
                return max(limits)
        return None

    def agree(self, place: int) -> None:
        """Hears of the meeting's place."""
        with self._changed:
            self._place = place
            self._changed.notify_all()

    def is_at(self, place: int) -> bool:
        """Returns whether the hosts meet at this place or met before it; waits to know that."""
        with self._changed:
            self._reached = place
            if not self.called:
                return False
            while self._place is None and place >= self._limit:
                self._changed.wait()
            return self._place is not None and place >= self._place

    def adjourn(self) -> None:
        """Ends the meeting, so that the next one can be called; every host was at its place.

        What hosts stated for the meeting before is no longer read, and host 0 removes it.
        """
        with self._changed:
            before, self._turn = self._turn - 1, self._turn + 1
            self.asked = self.called = self._collected = False
            self._place = None
        if self._host == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_delete(f"{self._folder}{before}/")

    @property
    def _key(self) -> str:
        return f"{self._folder}{self._turn}/"

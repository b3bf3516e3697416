"""That the hosts of a run end together: a failed host, and one that was lost, end the others.

A host that waits for another in a collective waits for ever, or until JAX's heartbeats end it with
a fatal error and a dump of the stack. So each has a thread besides, which costs the loop nothing:
it gives a sign of life, and waits for the word that the run is over.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from vitswin_jax.core.terminal import say_error
from vitswin_jax.core.types import UserError

_END = "vitswin_jax/end"
_SIGNS = "vitswin_jax/alive/"
_GRACE = 1.0  # seconds for a host to end by an error of its own, when all fail alike
_LINGER = 3.0  # seconds that host 0, who keeps the store, lets the others read it


class Watch:
    """Ends this process, one of several hosts, with a line when the run is over for it.

    `client` is the coordination service's, `lost_after` is in seconds.
    """

    def __init__(self, client: Any, host: int, *, lost_after: float) -> None:
        self._client, self._host, self._lost_after = client, host, lost_after
        self._period = max(1.0, lost_after / 10)
        self._seen: dict[str, tuple[str, float]] = {}  # each host's last sign, and since when
        self._speaks = threading.Lock()  # held by who ends this process
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Ends the watch, as all hosts do now."""
        self._speaks.acquire()
        self._say(None)
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tells the other hosts that this one ends with an error of its own.

        What JAX raises may come of a lost host, and then ends with the line that says so.
        """
        if isinstance(error, jax.errors.JaxRuntimeError | ValueError) and not isinstance(
            error, UserError
        ):
            self._thread.join(self._lost_after + 2 * self._period)
        self._speaks.acquire()
        lines = str(error).strip().splitlines() or [""]
        line = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
        self._say({"line": f"host {self._host}: {line}", "lost": False})
        self._thread.join()

    def _run(self) -> None:
        for sign in itertools.count():
            told = self._listen(str(sign))
            if told is not False:
                break
        if told is None:
            return
        if not told["lost"]:
            time.sleep(_GRACE)
        if self._speaks.acquire(blocking=False):
            self._end(told)

    def _listen(self, sign: str) -> Any:
        """Gives a sign of life, and returns the last word; False where there is none yet."""
        try:
            self._client.key_value_set(f"{_SIGNS}{self._host}", sign, allow_overwrite=True)
            return json.loads(self._client.blocking_key_value_get(_END, int(1000 * self._period)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return _lost("0")
        return self._look() if self._host == 0 else False

    def _look(self) -> Any:
        """Looks for hosts that are silent; returns the last word then, else False."""
        now = time.monotonic()
        for key, sign in self._client.key_value_dir_get(_SIGNS):
            host = key.rsplit("/", 1)[1]
            if host not in self._seen or self._seen[host][0] != sign:
                self._seen[host] = sign, now
        silent = [host for host, (_, then) in self._seen.items() if now - then > self._lost_after]
        if not silent:
            return False
        told = _lost(*silent)
        self._say(told)
        return told

    def _say(self, told: Any) -> None:
        """Says the last word, unless it has been said."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(_END, json.dumps(told))

    def _end(self, told: Any) -> NoReturn:
        say_error(told["line"])
        sys.stdout.flush()
        if not told["lost"]:
            jax.distributed.shutdown()  # for which the failed host waits
        elif self._host == 0:
            time.sleep(_LINGER)
        os._exit(1)


def _lost(*hosts: str) -> dict[str, Any]:
    line = f"lost host {', '.join(hosts)}; the same command, on all hosts, goes on from the last "
    return {"line": line + "checkpoint.", "lost": True}

"""Stopping on request: Ctrl-C, SIGHUP, and SIGTERM, which clusters send before they end a job.

A run stops after a step, or before a batch of an evaluation: all its hosts at the same place.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from vitswin_jax.core.signals import NAMES, Asked, asked_to_end, program
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.join import EveryHostError

Item = TypeVar("Item")

REQUEST = 0
"""The number, among those of signals, of a request to end with results."""


class StoppedError(EveryHostError):
    """A run that stopped on request, after it had saved all that a resume needs."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class InterruptedEvaluation(Exception):  # noqa: N818  the run ends well
    """Raised to end an evaluation when its run is asked to stop."""


class Stop:
    """Says whether the run is to stop, at the places where it can: all hosts ask at the same ones.

    A signal to any host stops all of them, and so does a request, which `requested` looks for on
    the first host. A run that is requested to stop ends with its results.
    """

    def __init__(self, asked: Asked, requested: Callable[[], bool]) -> None:
        self._asked, self._requested, self._told = asked, requested, False
        self._number: int | None = None
        self.stops = False
        """What the last call returned."""

    @property
    def on_request(self) -> bool:
        """Whether it stops, and no signal asked for it."""
        return self.stops and self._number == REQUEST

    def __call__(self) -> bool:
        """Returns whether to stop here, and from here on; the state is worth saving now."""
        if self.stops:
            return True
        self._asked.save()
        number = self._asked.number
        if number is None and self._requested():
            number = REQUEST
        if (hosts := watch.current) is None:
            self.stops, self._number = number is not None, number
            return self.stops
        if number is not None and not self._told:
            self._told = True
            hosts.ask_to_stop(number)
        self.stops, self._number = hosts.stops_here(), hosts.stop
        return self.stops

    def before_each(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches of an evaluation; raises InterruptedEvaluation at a signal's stop."""
        for batch in batches:
            if self() and not self.on_request:
                raise InterruptedEvaluation
            yield batch

    def error(self, step: int, total_steps: int) -> StoppedError:
        """Returns the error of a run that has stopped after `step`, and saved it."""
        number = self._number or signal.SIGTERM
        return StoppedError(
            f"stopped by {NAMES[number]} at step {step} of {total_steps}; all is saved. To resume, "
            "repeat the command.",
            number,
        )


@contextlib.contextmanager
def stopping(requested: Callable[[], bool]) -> Iterator[Stop]:
    """Gives the object that states whether a run must stop."""
    with asked_to_end() as asked:
        yield Stop(asked, requested)


def stop_in_the_loop() -> None:
    """Has several hosts that are about to write stop only in the loop, all at the same place."""
    own = program()
    if own is not None and watch.current is not None:
        own.save()

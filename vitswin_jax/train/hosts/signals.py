"""Stopping on request: Ctrl-C, SIGHUP, and SIGTERM, which clusters send before they take a machine.

A run stops after a step, or before a batch of an evaluation: all its hosts at the same place.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

from vitswin_jax.core.signals import NAMES, Asked, asked_to_end, program
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.join import EveryHostError

Item = TypeVar("Item")


class StoppedError(EveryHostError):
    """A run that was asked to stop, and has saved all it needs to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class InterruptedEvaluation(Exception):  # noqa: N818  the run ends well
    """What ends an evaluation as its run is asked to stop."""


class Stop:
    """Says whether the run is to stop, at the places where it can: all hosts ask at the same ones.

    A signal to any host stops all of them.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked, self._stops, self._told = asked, False, False

    def __call__(self) -> bool:
        """Returns whether to stop here, and from here on; the state is worth saving now."""
        if self._stops:
            return True
        self._asked.save()
        if (hosts := watch.current) is None:
            self._stops = self._asked.number is not None
            return self._stops
        if self._asked.number is not None and not self._told:
            self._told = True
            hosts.ask_to_stop(self._asked.number)
        self._stops = hosts.stops_here()
        return self._stops

    def before_each(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches of an evaluation; raises InterruptedEvaluation at a stop."""
        for batch in batches:
            if self():
                raise InterruptedEvaluation
            yield batch

    def error(self, step: int, total_steps: int) -> StoppedError:
        """Returns the error of a run that has stopped after `step`, and saved it."""
        hosts = watch.current
        number = (hosts and hosts.stop) or self._asked.number or signal.SIGTERM
        return StoppedError(
            f"stopped by {NAMES[number]} at step {step} of {total_steps}; all is saved, and the "
            "same command goes on from there.",
            number,
        )


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Gives what says whether a run is to stop."""
    with asked_to_end() as asked:
        yield Stop(asked)


def stop_in_the_loop() -> None:
    """Has several hosts that are about to write stop only in the loop, all at the same place."""
    own = program()
    if own is not None and watch.current is not None:
        own.save()

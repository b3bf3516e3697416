"""Stopping on request: Ctrl-C, SIGHUP, and SIGTERM, which clusters send before they take a machine.

A run stops after a step, or before a batch of an evaluation: all its hosts at the same place.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from vitswin_jax.core.signals import NAMES, Asked, asked_to_end
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

    Of several hosts, JAX's coordination service hears the SIGTERM of any.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked, self._stops = asked, False
        self._places = itertools.count(1)  # of this process: the service may hear before any

    def __call__(self) -> bool:
        """Returns whether to stop here, and from here on; the state is worth saving now."""
        if self._stops:
            return True
        self._asked.save()
        if jax.distributed.is_initialized():
            self._stops = multihost_utils.reached_preemption_sync_point(next(self._places))
        else:
            self._stops = self._asked.number is not None
        return self._stops

    def before_each(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches of an evaluation; raises InterruptedEvaluation at a stop."""
        for batch in batches:
            if self():
                raise InterruptedEvaluation
            yield batch

    def error(self, step: int, total_steps: int) -> StoppedError:
        """Returns the error of a run that has stopped after `step`, and saved it."""
        number = self._asked.number or signal.SIGTERM
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

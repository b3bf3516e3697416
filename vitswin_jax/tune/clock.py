"""The time of a command: the rest of it, and the steps that fit into it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

AIM = 0.97
"""The share of the time after which a run is planned to end."""
_EVALUATING = 0.08  # of the time, what evaluations may take
_MOST_EVALUATIONS = 12


@dataclass(frozen=True)
class Clock:
    """A command's time, in seconds, from its beginning."""

    seconds: float
    begin: float
    now: Callable[[], float] = time.monotonic

    @property
    def spent(self) -> float:
        """Seconds since the command began."""
        return self.now() - self.begin

    @property
    def left(self) -> float:
        """Seconds until the run is planned to end."""
        return AIM * self.seconds - self.spent


@dataclass(frozen=True)
class Costs:
    """Seconds that a run takes, measured or expected."""

    step: float
    evaluation: float
    """One evaluation, with the weights and the page that are written after it."""
    start: float
    """From the call of the trainer until it trains at full speed."""

    def steps_in(self, seconds: float, evaluations: int) -> int:
        """Returns how many steps fit into a time that has a start and evaluations besides."""
        rest = seconds - self.start - evaluations * self.evaluation
        return max(0, math.floor(rest / self.step))


def evaluations_in(seconds: float, costs: Costs) -> int:
    """Returns how many evaluations a run of so many seconds has, the last one at its end."""
    return min(max(int(_EVALUATING * seconds / costs.evaluation), 1), _MOST_EVALUATIONS)

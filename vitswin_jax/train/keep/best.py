"""The best evaluation of a run so far, and the number of evaluations since."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


def score(numbers: Mapping[str, float]) -> float:
    """Returns the value that ranks evaluations: the accuracy, or without labels the loss.

    A state that was not tested is the last.
    """
    return numbers.get("test/accuracy", -numbers.get("test/loss", math.inf))


class Best(NamedTuple):
    """The best evaluation; of equal ones the last."""

    score: float = -math.inf
    step: int = 0
    """0: there is none."""
    since: int = 0
    """How many evaluations came after the first of that score, none of them better."""

    def after(self, step: int, numbers: Mapping[str, float]) -> Best:
        """Returns the best after one more evaluation."""
        new = score(numbers)
        if new > self.score or not self.step:
            return Best(new, step)
        return Best(self.score, step if new == self.score else self.step, self.since + 1)

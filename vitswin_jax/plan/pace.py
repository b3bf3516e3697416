"""Time of a step that is spent in communication, by a model: published rates, nothing overlapped.

A collective over n devices moves (n - 1) / n of its bytes over a device's links, an all-reduce
twice as much; n is taken as large. Products are computed at half of the peak rate. The share is an
upper bound, because compilers overlap both; only hardware shows the time itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitswin_jax.plan.collectives import Traffic
from vitswin_jax.plan.topology import Rates

TIMES = {"all-reduce": 2}
"""How often a collective moves its bytes; all others do it once."""
OF_PEAK = 0.5
"""The part of the peak rate at which products are taken to be computed."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, by what they are spent on."""

    products: float
    links: float
    """Collectives inside a slice."""
    network: float
    """Collectives between slices."""

    @property
    def share(self) -> float:
        """The part of the step in communication, from 0 to 1, if nothing overlaps."""
        waiting = self.links + self.network
        return waiting / (waiting + self.products)


def pace_of(
    flops: float,
    inside: Mapping[str, Traffic],
    between: Mapping[str, Traffic],
    rates: Rates,
) -> Pace:
    """Returns the times of a step with `flops` on a device, and these collectives."""
    return Pace(
        products=flops / (OF_PEAK * rates.flops),
        links=_moved(inside) / rates.links,
        network=_moved(between) / rates.network,
    )


def _moved(traffic: Mapping[str, Traffic]) -> float:
    return sum(TIMES.get(kind, 1) * each.nbytes for kind, each in traffic.items())

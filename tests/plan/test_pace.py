"""The time of a step by published rates, against numbers by hand."""

import pytest

from vitswin_jax.plan.collectives import Traffic
from vitswin_jax.plan.pace import pace_of
from vitswin_jax.plan.topology import TPUS, Rates


def test_sums_move_twice_and_all_else_once():
    rates = Rates(flops=1e12, links=1e9, network=1e8)
    inside = {"all-reduce": Traffic(3, 10**9), "all-gather": Traffic(1, 10**9)}
    pace = pace_of(1e12, inside, {"all-reduce": Traffic(1, 10**8)}, rates)
    assert (pace.products, pace.links, pace.network) == (2.0, 3.0, 2.0)
    assert pace.share == pytest.approx(5 / 7)
    assert pace_of(1e12, {}, {}, rates).share == 0


def test_rates_are_of_a_chip_and_one_way():
    """Twice a link's rate is what the pages call bidirectional: GB/s, and Gbit/s of the network."""
    published = {"v5e": (197, 400, 25), "v5p": (459, 1200, 50), "v6e": (918, 800, 100)}
    for name, (tflops, links, network) in published.items():
        rates = TPUS[name].rates
        assert rates == Rates(tflops * 1e12, links * 1e9 / 2, network * 1e9 / 8)

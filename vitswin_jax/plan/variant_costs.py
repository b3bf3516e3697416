"""Costs of all variants, counted once and kept in `variant_costs.txt`.

Tracing them all takes half a minute, which is long for a list of them. A test holds the table to
the models; `python -m vitswin_jax.plan.cost` writes it anew.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("variant_costs.txt")


@dataclass(frozen=True)
class Cost:
    """The cost of one model for one image of its size."""

    parameters: int
    multiply_adds: int
    img_size: tuple[int, int]  # height, width in pixels


@functools.cache
def variant_costs() -> Mapping[str, Cost]:
    """Returns the table: variant -> cost."""
    rows = (
        line.split()
        for line in TABLE.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    return {
        name: Cost(int(parameters), int(multiply_adds), (int(height), int(width)))
        for name, parameters, multiply_adds, height, width in rows
    }

"""The sides of maps: numbers, or symbols in a program for images of any size.

An array that depends only on the sides, such as a mask, is a constant of the program if they are
numbers. If they are symbols, the program computes it. `of_sides` makes both of one formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim, symbolic_shape

if TYPE_CHECKING:
    Symbol = int
    Side = int
else:  # jax.export has no public name for the type of a symbol
    Symbol = type(symbolic_shape("side")[0])
    Side = int | Symbol
Size = tuple[Side, Side]
"""(height, width)."""

P = ParamSpec("P")
Result = TypeVar("Result")


def of_sides(
    formula: Callable[Concatenate[Any, Size, P], Result],
) -> Callable[Concatenate[Size, P], Result]:
    """Returns `formula(numpy, size, ...)`, kept for the next call, or `formula(jax.numpy, ...)`.

    >>> area = of_sides(lambda xp, size: xp.ones(size).sum())
    >>> float(area((2, 3)))
    6.0
    """
    kept = functools.lru_cache(maxsize=64)(functools.partial(formula, np))

    @functools.wraps(formula)
    def chosen(size: Size, *args: P.args, **kwargs: P.kwargs) -> Result:
        if any(map(is_symbolic_dim, size)):
            return formula(jnp, size, *args, **kwargs)
        return kept(size, *args, **kwargs)  # type: ignore[arg-type]  # options are hashable

    return chosen

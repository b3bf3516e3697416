"""Parametrized tests: one of each kind in `make test`, all of them in `make test-all`."""

import pytest


def mostly_long(rows, short):
    """Returns rows as parameters, those that are not in `short` marked `long`.

    A tuple is a row of several arguments. Raises where one of `short` is no row.
    """
    rows, short = list(rows), list(short)
    assert all(row in rows for row in short), f"{short} are not all of {rows}"
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)),
            marks=[pytest.mark.long] * (row not in short),
        )
        for row in rows
    ]

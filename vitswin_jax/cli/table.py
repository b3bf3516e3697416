"""Plain tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

from vitswin_jax.core.terminal import printable


def format_table(table: Sequence[Sequence[str]], *, align: str) -> list[str]:
    """Returns a line for each row, its columns two spaces apart; `align` has "<" or ">" for each.

    The cells are printable, so that what is escaped keeps its column.
    """
    table = [[printable(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in table
    ]

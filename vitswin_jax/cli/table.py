"""Plain tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(table: Sequence[Sequence[str]], *, align: str) -> str:
    """Returns rows in columns two spaces apart; `align` has "<" or ">" for each column."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in table
    )
    return "\n".join(lines)

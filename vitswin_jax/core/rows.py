"""Rows of numbers, one JSON object a line, as a run's metrics.jsonl has them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitswin_jax.core.types import UserError

STEP = "step"
_MOST = 2**53  # steps; a larger number is no double


class Rows(NamedTuple):
    """The contents of a file of rows."""

    lines: Sequence[tuple[str, Mapping[str, Any]]]
    """Each row as it is written, and what it says."""
    foreign: int
    """How many other lines there are; the part of a line that a killed process wrote is none."""


def read_rows(path: Path) -> Rows:
    """Returns the rows of a file; none where there is no file.

    A row has a step and numbers, or null for a number that is not finite. Whatever else a line has
    in it is foreign. Raises UserError where the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Rows([], 0)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    *lines, last = data.split(b"\n")
    rows, foreign = [], 0
    for line in (*lines, last):
        row = _row(line)
        if row is not None:
            rows.append((line.decode(), row))
        elif line is not last and line.strip():
            foreign += 1
    return Rows(rows, foreign)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    step = row.get(STEP)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _MOST:
        return None
    return row if all(map(_is_number, row.values())) else None


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < _MOST
    return value is None or (isinstance(value, float) and math.isfinite(value))

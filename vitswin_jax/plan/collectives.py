"""Collectives of a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_HEADER = re.compile(r"^(ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>.*?) (?P<op>[a-z][a-z0-9-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|branch_computations|"
    r"called_computations)=(\{[^}]*\}|%[\w.-]+)"
)
_LOOP = re.compile(r"condition=%([\w.-]+), body=%([\w.-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(rf"(?P<kind>{'|'.join(KINDS)})(?P<start>-start)?")


@dataclass(frozen=True)
class Traffic:
    """The number of a step's collectives of one kind, and the size of their arrays."""

    count: int
    nbytes: int
    """On one device, of what goes in or of what comes out, whichever is more."""


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """The names of what it is applied to."""
        return re.findall(r"%([\w.-]+)", self.rest.split("), ", 1)[0])


def collectives(program: str) -> dict[str, Traffic]:
    """Returns the collectives of a compiled program, one run of it, by kind; `KINDS` has them.

    A loop counts once per turn. Raises ValueError for a collective in a loop whose turns the text
    does not show.
    """
    entry, computations = _read(program)
    sizes = {i.name: _nbytes(i.type) for lines in computations.values() for i in lines}
    counts: dict[str, int] = defaultdict(int)
    nbytes: dict[str, int] = defaultdict(int)
    for instruction, kind, turns in _walk(entry, computations, 1):
        counts[kind] += turns
        nbytes[kind] += turns * _moved(instruction, kind, sizes)
    return {kind: Traffic(counts[kind], nbytes[kind]) for kind in KINDS if kind in counts}


def _read(program: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Returns the name of the entry, and the instructions of every computation."""
    computations: dict[str, list[_Instruction]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        if header := _HEADER.match(line):
            lines = computations.setdefault(header["name"], [])
            entry = header["name"] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            lines.append(_Instruction(**instruction.groupdict()))
    return entry, computations


def _walk(
    name: str, computations: Mapping[str, list[_Instruction]], turns: int
) -> Iterator[tuple[_Instruction, str, int]]:
    """Gives every collective under a computation, its kind and how often it is done."""
    for instruction in computations[name]:
        if found := _COLLECTIVE.fullmatch(instruction.op):
            yield instruction, found["kind"], turns
        elif instruction.op == "while":
            condition, body = _LOOP.findall(instruction.rest)[0]
            inside = list(_walk(body, computations, 1))
            if inside:
                turns_inside = turns * _turns(instruction, computations[condition])
                yield from ((each, kind, turns_inside * n) for each, kind, n in inside)
        elif not instruction.op.endswith(("-done", "-update")):  # of what `-start` has called
            for called in _CALLED.findall(instruction.rest):
                for each in re.findall(r"%([\w.-]+)", called):
                    yield from _walk(each, computations, turns)


def _turns(loop: _Instruction, condition: list[_Instruction]) -> int:
    """Returns how often a loop is run: as the compiler says, or as its condition does, i < n."""
    if known := _TURNS.search(loop.rest):
        return int(known[1])
    last = condition[-1]
    constants = {i.name: i.rest for i in condition if i.op == "constant"}
    bounds = [constants[name] for name in last.operands if name in constants]
    if last.op != "compare" or "direction=LT" not in last.rest or len(bounds) != 1:
        raise ValueError(f"the program's text does not show the turns of {loop.name}")
    return int(bounds[0].split(")")[0])


def _moved(instruction: _Instruction, kind: str, sizes: Mapping[str, int]) -> int:
    given = sum(sizes[name] for name in instruction.operands)
    if kind != "all-gather":
        return given
    out = _nbytes(instruction.type)  # of a start with what was given
    return out - given if instruction.op.endswith("-start") else out


def _nbytes(type_: str) -> int:
    """Returns the size of an array, or of a tuple of arrays, from its type as text."""
    return sum(
        math.prod(map(int, filter(None, shape.split(",")))) * _bits(dtype) // 8
        for dtype, shape in _ARRAY.findall(type_)
    )


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8 * (dtype == "pred")

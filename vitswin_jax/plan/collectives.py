"""Collectives of a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
# Groups of devices: as a list, as numbers in a row that are reshaped, transposed and cut, or as the
# axes of a mesh of such numbers.
_LIST = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")
_MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\]"
    r"(?:, device_ids=\((?P<ids>[^{]*)\))? \{(?P<over>[^}]*)\}"
)
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
# Between slices TPUs have no links: the compiler sums inside a slice, and its host sends the rest.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEGASCALE_KINDS = {"ONE_TO_ONE": "collective-permute"}
_SCATTER = "all-reduce-scatter"
_CHANNEL = re.compile(r"channel_id=(\d+)")
_INDEX = re.compile(r"index=(\d+)")
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


def collectives(program: str, *, slices: Sequence[int] = ()) -> dict[str, Traffic]:
    """Returns the collectives of a compiled program, one run of it, by kind; `KINDS` has them.

    With `slices`, the slice of each of the program's devices in order, only those that stay inside
    a slice. A loop counts once per turn. Raises ValueError for a collective in a loop whose turns
    the text does not show, or whose groups it does not show.
    """
    return _sum(program, slices, between=False)


def between_slices(program: str, slices: Sequence[int]) -> dict[str, Traffic]:
    """Returns the collectives that leave a slice, as `collectives` does those inside."""
    return _sum(program, slices, between=True)


def _sum(program: str, slices: Sequence[int], *, between: bool) -> dict[str, Traffic]:
    entry, computations = _read(program)
    sizes = {i.name: _nbytes(i.type) for lines in computations.values() for i in lines}
    counts: dict[str, int] = defaultdict(int)
    nbytes: dict[str, int] = defaultdict(int)
    for instruction, kind, turns in _walk(entry, computations, 1):
        if len(set(slices)) > 1 and _leaves(instruction, slices) != between:
            continue
        counts[kind] += turns
        nbytes[kind] += turns * _moved(instruction, kind, sizes)
    return {kind: Traffic(counts[kind], nbytes[kind]) for kind in KINDS if kind in counts}


def _leaves(instruction: _Instruction, slices: Sequence[int]) -> bool:
    """Returns whether a collective joins devices of several slices."""
    if instruction.op == "send":
        return True
    return any(len({slices[i] for i in group}) > 1 for group in _groups(instruction, len(slices)))


def _groups(instruction: _Instruction, devices: int) -> list[list[int]]:
    """Returns the devices that each call of a collective joins."""
    if listed := _LIST.search(instruction.rest):
        groups = re.findall(r"\{([\d,]*)\}", listed[1])
        return [[int(i) for i in group.split(",")] for group in groups] or [[*range(devices)]]
    if mesh := _MESH.search(instruction.rest):
        return _over_axes(mesh["axes"], _iota(mesh["ids"] or f"[{devices}]"), mesh["over"])
    if iota := _IOTA.search(instruction.rest):
        return _iota(iota[2]).reshape(_numbers(iota[1])).tolist()
    raise ValueError(f"the program's text does not show the groups of {instruction.name}")


def _iota(text: str) -> np.ndarray:
    """Returns the numbers from 0 that a text such as "[4,2]T(1,0)" reshapes and transposes."""
    shape, _, order = text.partition("T")
    row = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return row.transpose(_numbers(order) or None)


def _over_axes(axes: str, ids: np.ndarray, over: str) -> list[list[int]]:
    """Returns the groups of a mesh of devices over some axes, or over parts of them.

    A part such as "'a':(2)4" is 4 of an axis that is cut into 2, 4 and what is left.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    parts = {name: (1, size, 1) for name, size in sizes.items()}
    named = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
    for name, before, size in named:
        if size:
            cut = int(before), int(size)
            parts[name] = (*cut, sizes[name] // math.prod(cut))
    grid = ids.reshape([size for part in parts.values() for size in part])
    joined = [3 * list(sizes).index(name) + 1 for name, *_ in named]
    last = range(grid.ndim - len(joined), grid.ndim)
    size = math.prod(grid.shape[axis] for axis in joined)
    return np.moveaxis(grid, joined, last).reshape(-1, size).tolist()


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


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
    name: str,
    computations: Mapping[str, list[_Instruction]],
    turns: int,
    fused: set[str] | None = None,
) -> Iterator[tuple[_Instruction, str, int]]:
    """Gives every collective under a computation, its kind and how often it is done.

    A TPU's collective that overlaps products is in several fusions: one starts it, one awaits it.
    `fused` has the channels of those that were met already.
    """
    met: set[str] = set()
    for instruction in computations[name]:
        if kind := _kind(instruction, name):
            channel = _CHANNEL.search(instruction.rest)
            if fused is not None and channel:
                if channel[1] in fused:
                    continue
                fused.add(channel[1])
            yield instruction, kind, turns
        elif instruction.op == "while":
            condition, body = _LOOP.findall(instruction.rest)[0]
            inside = list(_walk(body, computations, 1))
            if inside:
                turns_inside = turns * _turns(
                    instruction, computations[condition], computations[name]
                )
                yield from ((each, kind, turns_inside * n) for each, kind, n in inside)
        elif not instruction.op.endswith(("-done", "-update")):  # of what `-start` has called
            below = (met if fused is None else fused) if instruction.op == "fusion" else None
            for called in _CALLED.findall(instruction.rest):
                for each in re.findall(r"%([\w.-]+)", called):
                    yield from _walk(each, computations, turns, below)


def _kind(instruction: _Instruction, computation: str) -> str | None:
    """Returns the kind of a collective, None for other instructions.

    TPUs sum and divide in one fusion, of which the text has the sum.
    """
    if found := _COLLECTIVE.fullmatch(instruction.op):
        return "reduce-scatter" if computation.startswith(_SCATTER) else found["kind"]
    sent = _MEGASCALE.search(instruction.rest) if instruction.op == "send" else None
    return sent and _MEGASCALE_KINDS.get(sent[1], sent[1].lower().replace("_", "-"))


def _turns(loop: _Instruction, condition: list[_Instruction], around: list[_Instruction]) -> int:
    """Returns how often a loop is run: as the compiler says, or as its condition does, i < n.

    `around` are the instructions beside the loop: they show where i begins, which is 1 where the
    compiler has taken the first turn out of the loop.
    """
    if known := _TURNS.search(loop.rest):
        return int(known[1])
    last = condition[-1]
    bounds = [n for name in last.operands if (n := _constant(name, condition)) is not None]
    counters = [
        int(index[1])
        for each in condition
        if each.name in last.operands and (index := _INDEX.search(each.rest))
    ]
    made = {each.name: each for each in around}
    first = None
    if counters and (init := made.get(loop.operands[0])) and init.op == "tuple":
        first = _constant(init.operands[counters[0]], around)
    if last.op != "compare" or "direction=LT" not in last.rest or len(bounds) != 1 or first is None:
        raise ValueError(f"the program's text does not show the turns of {loop.name}")
    return bounds[0] - first


def _constant(name: str, instructions: list[_Instruction]) -> int | None:
    """Returns the value of an integer, through copies of it; None where it is not a constant."""
    made = {each.name: each for each in instructions}
    while name in made and made[name].op in ("copy", "bitcast", "convert"):
        name = made[name].operands[0]
    if name not in made or made[name].op != "constant":
        return None
    value = made[name].rest.split(")")[0]
    return int(value) if value.lstrip("-").isdecimal() else None


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

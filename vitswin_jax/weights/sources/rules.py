"""Rules between a source's names and ours: read in both directions, and checked before any reading.

A rule pairs name templates. `{i}` stands for a number, `{i+1}` for one that is larger by one over
there, `{n:norm[12]}` for whatever the expression matches; what stands under a name in one template
stands under it in the other. Several of theirs in one rule are parts of one of ours, stacked, such
as query, key and value, or side by side, such as gate and value of an MLP. Of several rules for a
name the first whose parts are all there is taken. A rule without ours drops: buffers that are
recomputed, and what is never used.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import Shapes, UserError
from vitswin_jax.weights.formats.tensors import Tensor, Tensors, is_float
from vitswin_jax.weights.sources.layouts import How, Shape, dense, same

_FIELD = re.compile(r"\{(\w+)(?:\+(\d+))?(?::([^}]*))?\}")
STACKED = -3  # the axis of ours that has query, key and value, of kernels and biases alike


@dataclass(frozen=True)
class Rule:
    """One line of a table: their names, our name, and the layouts between."""

    theirs: str | tuple[str, ...]
    ours: str | None
    how: How = same
    beside: bool = False
    """Whether several of theirs are side by side on the last axis of ours, not stacked."""

    def __post_init__(self) -> None:
        """Gives `{n}` the expression that `{n:...}` has in another of the rule's templates."""
        theirs = (self.theirs,) if isinstance(self.theirs, str) else self.theirs
        templates = (*theirs, self.ours or "")
        kinds = {name: kind for t in templates for name, _, kind in _FIELD.findall(t) if kind}

        def complete(template: str) -> str:
            return _FIELD.sub(
                lambda f: f"{{{f[1]}:{kinds[f[1]]}}}" if f[1] in kinds else f[0], template
            )

        parts = tuple(complete(part) for part in theirs)
        object.__setattr__(self, "theirs", parts[0] if isinstance(self.theirs, str) else parts)
        if self.ours is not None:
            object.__setattr__(self, "ours", complete(self.ours))

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """Their templates."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def affine(
    theirs: str | tuple[str, ...],
    ours: str,
    kernel: How = dense,
    bias: How = same,
    *,
    beside: bool = False,
) -> tuple[Rule, Rule]:
    """Returns the rules of a PyTorch layer, by the beginnings of its names: weight and bias."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    weights, biases = (tuple(name + kind for name in names) for kind in ("weight", "bias"))
    return (
        Rule(weights, f"{ours}kernel", kernel, beside),
        Rule(biases, f"{ours}bias", bias, beside),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Returns the rules of a PyTorch normalisation, by the beginnings of its names."""
    return Rule(f"{theirs}weight", f"{ours}scale"), Rule(f"{theirs}bias", f"{ours}bias")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Returns a template as an expression; a name that comes twice must match the same twice."""
    parts, seen, end = [], set(), 0
    for field in _FIELD.finditer(template):
        name, _, kind = field.groups()
        parts.append(re.escape(template[end : field.start()]))
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{kind or '[0-9]+'})")
        seen.add(name)
        end = field.end()
    return re.compile("".join(parts) + re.escape(template[end:]))


def match(template: str, name: str) -> dict[str, str] | None:
    """Returns the values of a template's fields in a name, or None if it does not match."""
    found = _pattern(template).fullmatch(name)
    return None if found is None else _values(template, found)


def _values(template: str, found: re.Match[str]) -> dict[str, str] | None:
    values = found.groupdict()
    for field, step, _ in _FIELD.findall(template):
        if step:
            values[field] = str(int(values[field]) - int(step))
            if int(values[field]) < 0:
                return None
    return values


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns a template with its fields filled in."""
    return _FIELD.sub(lambda field: _value(field, values), template)


def _value(field: re.Match[str], values: Mapping[str, str]) -> str:
    name, step, _ = field.groups()
    return str(int(values[name]) + int(step)) if step else values[name]


def apply_rules(
    tensors: Tensors, rules: Sequence[Rule], shapes: Shapes, *, origin: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns our tensors, unread, and the names that a rule drops.

    Every tensor of theirs is used once and every target of `shapes` is filled once. Raises
    UserError that lists all that is missing, unknown, ambiguous, or of another shape.
    """
    ours: dict[str, Tensor] = {}
    sources: dict[str, list[str]] = {}
    used: set[str] = set()
    dropped, faults = [], Faults()
    for name in tensors:
        if name in used:
            continue
        rule, target, parts = _find(name, rules, tensors)
        if rule is None:
            faults.append(f"{name} is unknown")
        elif target is None:
            dropped.append(name)
        elif target not in shapes:
            faults.append(f"{name} has no place in the model")
        elif absent := [part for part in parts if part not in tensors]:
            faults.append(f"{name} is there without {', '.join(absent)}")
        elif target in ours:
            both = f"{', '.join(parts)} and {', '.join(sources[target])}"
            faults.append(f"{both} are one thing twice")
        else:
            used.update(parts)
            sources[target] = parts
            found = [tensors[part] for part in parts]
            ours[target] = _combine(found, rule, shapes[target])
            faults += _misfits(parts, found, rule, shapes[target])
    for target in sorted(shapes.keys() - ours.keys()):
        expected = next((names for _, names in _matches(target, rules)), None)
        faults.append(f"{' and '.join(expected or [target])} is missing")
    faults.check(f"{origin}: does not fit the model: ")
    return ours, dropped


def gather(tensors: Tensors, rules: Sequence[Rule]) -> dict[str, list[Tensor]]:
    """Returns those of their tensors that have a name of ours, by it; shapes are not checked."""
    found: dict[str, list[Tensor]] = {}
    for name in tensors:
        _, target, parts = _find(name, rules, tensors)
        if target is not None and target not in found:
            found[target] = [tensors[part] for part in parts if part in tensors]
    return found


def write_rules(
    ours: Mapping[str, np.ndarray], rules: Sequence[Rule], *, origin: str
) -> dict[str, np.ndarray]:
    """Returns our arrays under their names and in their layouts; the first rule that fits is used.

    Raises UserError that lists every array the source has no name for.
    """
    theirs: dict[str, np.ndarray] = {}
    homeless = []
    for name, array in ours.items():
        found = next(_matches(name, rules), None)
        if found is None:
            homeless.append(name)
            continue
        rule, names = found
        for part_name, part in zip(names, _divide(array, rule, len(names)), strict=True):
            theirs[part_name] = rule.how.write(part)
    if homeless:
        raise UserError(f"{origin}: the format has no place for {', '.join(sorted(homeless))}.")
    return theirs


def rename(tensors: Tensors, changes: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Returns tensors whose names went through the (expression, replacement) pairs in turn."""
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for expression, replacement in changes:
            new = re.sub(expression, replacement, new)
        renamed[new] = tensor
    return renamed


def _find(
    name: str, rules: Sequence[Rule], tensors: Tensors
) -> tuple[Rule | None, str | None, list[str]]:
    """Returns the rule for a name, our name and theirs: the first whose parts are all there."""
    found: list[tuple[Rule, str | None, list[str]]] = []
    for rule in rules:
        fits = ((part, _pattern(part).fullmatch(name)) for part in rule.parts)
        found_values = (_values(part, fit) for part, fit in fits if fit is not None)
        values = next((v for v in found_values if v is not None), None)
        if values is None:
            continue
        if rule.ours is None:
            found.append((rule, None, [name]))
            break
        names = [fill(other, values) for other in rule.parts]
        found.append((rule, fill(rule.ours, values), names))
        if len(names) == 1 or all(part in tensors for part in names):
            return found[-1]
    return found[0] if found else (None, None, [])


def _matches(name: str, rules: Sequence[Rule]) -> Iterator[tuple[Rule, list[str]]]:
    for rule in rules:
        fit = None if rule.ours is None else _pattern(rule.ours).fullmatch(name)
        if fit is not None and rule.ours and (values := _values(rule.ours, fit)) is not None:
            yield rule, [fill(part, values) for part in rule.parts]


def _combine(parts: list[Tensor], rule: Rule, shape: Shape) -> Tensor:
    """Returns the array made of the parts; each is read when its place is filled, then freed."""
    dtype = parts[0].dtype

    def fill(array: np.ndarray) -> None:
        for part, place in zip(parts, _divide(array, rule, len(parts)), strict=True):
            rule.how.read(part.read(), place)

    def read() -> np.ndarray:
        array = np.empty(shape, dtype)
        fill(array)
        return array

    return Tensor(shape, dtype, read, fill=fill)


def _divide(array: np.ndarray, rule: Rule, count: int) -> list[np.ndarray]:
    """Returns the parts of one of ours, as views of it."""
    if count == 1:
        return [array]
    return np.split(array, count, -1) if rule.beside else list(np.moveaxis(array, STACKED, 0))


def _misfits(names: list[str], tensors: list[Tensor], rule: Rule, shape: Shape) -> list[str]:
    part = _part_shape(shape, rule, len(names))
    return [
        f"{name} has shape {tensor.shape}, the model's {rule.how.shape(part)}"
        for name, tensor in zip(names, tensors, strict=True)
        if tensor.shape != rule.how.shape(part)
    ] + [
        f"{name} has {tensor.dtype}, no floating-point numbers"
        for name, tensor in zip(names, tensors, strict=True)
        if not is_float(tensor)
    ]


def _part_shape(shape: Shape, rule: Rule, count: int) -> Shape:
    if count == 1:
        return shape
    if rule.beside:
        return (*shape[:-1], shape[-1] // count)
    return (*shape[:STACKED], *shape[STACKED + 1 :])

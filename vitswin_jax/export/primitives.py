"""JAX's primitives in ONNX, as far as the models use them; `products` has the rest.

A handler takes the graph, the equation and its inputs, and returns its outputs. Shapes stand in
the equation; an input may still have 1 where it is to be broadcast (`Value.shape`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from vitswin_jax.core.types import UserError
from vitswin_jax.export.graph import Graph, Shape, Value

Handler = Callable[..., Value | list[Value]]

_ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def shape_of(sides: Iterable[Any]) -> Shape:
    """Returns a shape of JAX's with symbols as text."""
    return tuple(int(side) if isinstance(side, int | np.integer) else str(side) for side in sides)


def wholes(graph: Graph, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Returns an equation's inputs as large as it has them."""
    return [
        graph.whole(value, shape_of(atom.aval.shape))
        for value, atom in zip(inputs, eqn.invars, strict=True)
    ]


def _joint(values: Sequence[Value]) -> Shape:
    """Returns the shape that values broadcast to."""
    rank = max(len(value.shape) for value in values)
    padded = [(1,) * (rank - len(value.shape)) + value.shape for value in values]
    return tuple(next((s for s in sides if s != 1), 1) for sides in zip(*padded, strict=True))


def _apply(graph: Graph, op: str, *values: Value, **attributes: Any) -> Value:
    return graph.add(op, *values, shape=_joint(values), **attributes)


def _elementwise(graph: Graph, eqn: Any, *values: Value) -> Value:
    return _apply(graph, _ELEMENTWISE[eqn.primitive.name], *values)


def _square(graph: Graph, eqn: Any, x: Value) -> Value:
    return _apply(graph, "Mul", x, x)


def _integer_pow(graph: Graph, eqn: Any, x: Value) -> Value:
    power = Value((), array=np.asarray(eqn.params["y"], eqn.outvars[0].aval.dtype))
    return _apply(graph, "Pow", x, power)


def _rsqrt(graph: Graph, eqn: Any, x: Value) -> Value:
    return _apply(graph, "Reciprocal", _apply(graph, "Sqrt", x))


def _erfc(graph: Graph, eqn: Any, x: Value) -> Value:
    one = Value((), array=np.ones((), eqn.outvars[0].aval.dtype))
    return _apply(graph, "Sub", one, _apply(graph, "Erf", x))


def _same(graph: Graph, eqn: Any, x: Value) -> Value:
    return x


def _convert(graph: Graph, eqn: Any, x: Value) -> Value:
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if before == after:
        return x
    if x.array is not None:
        return Value(x.shape, array=x.array.astype(after))
    return _apply(graph, "Cast", x, to=helper.np_dtype_to_tensor_dtype(after))


def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise UserError("ONNX: a select_n can be exported only for two cases; export to StableHLO.")
    return _apply(graph, "Where", which, cases[1], cases[0])


def _reshape(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    (x,) = wholes(graph, eqn, [x]) if len(eqn.invars) == 1 else (x,)
    return graph.reshape(x, shape_of(eqn.outvars[0].aval.shape))


def _squeeze(graph: Graph, eqn: Any, x: Value) -> Value:
    dropped = {axis % len(x.shape) for axis in eqn.params["dimensions"]}
    kept = tuple(side for axis, side in enumerate(x.shape) if axis not in dropped)
    return graph.reshape(x, kept)


def _transpose(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.transpose(x, eqn.params["permutation"])


def _broadcast(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    shape: list[int | str] = [1] * len(eqn.params["shape"])
    for axis, side in zip(eqn.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = side
    return graph.reshape(x, tuple(shape))


def _concatenate(graph: Graph, eqn: Any, *values: Value) -> Value:
    wide = wholes(graph, eqn, values)
    shape = shape_of(eqn.outvars[0].aval.shape)
    return graph.add("Concat", *wide, axis=eqn.params["dimension"], shape=shape)


def _stack(graph: Graph, eqn: Any, *values: Value) -> Value:
    axis, shape = eqn.params["axis"], shape_of(eqn.outvars[0].aval.shape)
    row = (*shape[:axis], 1, *shape[axis + 1 :])
    rows = [graph.reshape(value, row) for value in wholes(graph, eqn, values)]
    return graph.add("Concat", *rows, axis=axis, shape=shape)


def _slice(graph: Graph, eqn: Any, x: Value) -> Value:
    (x,) = wholes(graph, eqn, [x])
    starts, stops = (shape_of(eqn.params[name]) for name in ("start_indices", "limit_indices"))
    steps = eqn.params["strides"] or [1] * len(starts)
    return graph.slice(x, starts, stops, steps, shape=shape_of(eqn.outvars[0].aval.shape))


def _split(graph: Graph, eqn: Any, x: Value) -> list[Value]:
    """The parts along an axis; or its rows, each without it, as newer JAX unpacks an array."""
    (x,) = wholes(graph, eqn, [x])
    axis, steps, parts = eqn.params["axis"], [1] * len(x.shape), []
    starts, stops = [0] * len(x.shape), list(x.shape)
    for size, out in zip(eqn.params.get("sizes") or itertools.repeat(1), eqn.outvars, strict=False):
        stops[axis] = starts[axis] + int(size)
        shape = (*x.shape[:axis], int(size), *x.shape[axis + 1 :])
        part = graph.slice(x, tuple(starts), tuple(stops), steps, shape=shape)
        parts.append(graph.reshape(part, shape_of(out.aval.shape)))
        starts[axis] = stops[axis]
    return parts


def _gather(graph: Graph, eqn: Any, x: Value, indices: Value) -> Value:
    """A slice at a known place, which is what indexing by numbers and slices becomes."""
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0].aval.shape)
    places = np.empty((0, 0)) if indices.array is None else indices.array
    if places.ndim != 1 or len(numbers.offset_dims) != len(shape) or numbers.operand_batching_dims:
        raise UserError(
            "ONNX: a gather can be exported only if it is a slice at a known place; "
            "export to StableHLO."
        )
    (x, _) = wholes(graph, eqn, [x, indices])
    starts = [0] * len(x.shape)
    for axis, start in zip(numbers.start_index_map, places.tolist(), strict=True):
        starts[axis] = start
    sizes = shape_of(eqn.params["slice_sizes"])
    stops = tuple(
        start + side if not isinstance(side, str) else f"{start} + {side}" if start else side
        for start, side in zip(starts, sizes, strict=True)
    )
    part = graph.slice(x, tuple(starts), stops, [1] * len(starts), shape=sizes)
    return graph.reshape(part, shape)


def _pad(graph: Graph, eqn: Any, x: Value, fill: Value) -> Value:
    lows, highs, between = map(shape_of, zip(*eqn.params["padding_config"], strict=True))
    fits = all(isinstance(high, str) or high >= 0 for high in highs)  # a formula's is no cut
    if any(between) or not fits or any(isinstance(low, str) or low < 0 for low in lows):
        raise UserError(
            "ONNX: a pad can be exported only at the ends and without cutting; export to StableHLO."
        )
    (x, _) = wholes(graph, eqn, [x, fill])
    ends = graph.sides([*lows, *highs])
    shape = shape_of(eqn.outvars[0].aval.shape)
    return graph.add("Pad", x, ends, fill, shape=shape)


def _iota(graph: Graph, eqn: Any) -> Value:
    """The numbers from 0 along an axis whose side is a formula."""
    axis, shape = eqn.params["dimension"], shape_of(eqn.params["shape"])
    ends = [Value((), array=np.asarray(end, np.int64)) for end in (0, 1)]
    numbers = graph.add("Range", ends[0], graph.number(shape[axis]), ends[1], shape=(shape[axis],))
    kind = helper.np_dtype_to_tensor_dtype(eqn.outvars[0].aval.dtype)
    numbers = _apply(graph, "Cast", numbers, to=kind)
    row = tuple(side if place == axis else 1 for place, side in enumerate(shape))
    return graph.reshape(numbers, row)


def _dim_as_value(graph: Graph, eqn: Any) -> Value:
    (side,) = shape_of([eqn.params["dim"]])
    kind = helper.np_dtype_to_tensor_dtype(eqn.outvars[0].aval.dtype)
    return _apply(graph, "Cast", graph.number(side), to=kind)


def _reduce(graph: Graph, eqn: Any, x: Value) -> Value:
    op = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"}[eqn.primitive.name]
    (x,) = wholes(graph, eqn, [x])
    axes = graph.constant(eqn.params["axes"])
    shape = shape_of(eqn.outvars[0].aval.shape)
    return graph.add(op, x, axes, keepdims=0, shape=shape)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _same,
    "dim_as_value": _dim_as_value,
    "erfc": _erfc,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "pad": _pad,
    "reduce_max": _reduce,
    "reduce_sum": _reduce,
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": _same,
    "transpose": _transpose,
    "unstack": _split,
}

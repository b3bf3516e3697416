"""What each primitive of JAX is in ONNX: those that the models are made of.

A handler takes the graph, the equation and its inputs, and returns its outputs. Shapes stand in
the equation; an input may still have 1 where it is to be broadcast (`Value.shape`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from vitswin_jax.export.graph import Graph, Shape, Value
from vitswin_jax.types import UserError

Handler = Callable[..., Value | list[Value]]

HANDLERS: dict[str, Handler] = {}

_ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "div": "Div",
    "erf": "Erf",
    "exp": "Exp",
    "log": "Log",
    "logistic": "Sigmoid",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def shape_of(sides: Iterable[Any]) -> Shape:
    """Returns a shape of JAX's with symbols as text."""
    return tuple(int(side) if isinstance(side, int | np.integer) else str(side) for side in sides)


def _handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _wholes(graph: Graph, eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Returns the inputs as large as the equation has them."""
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
    return graph.add(op, *map(graph.name_of, values), shape=_joint(values), **attributes)


@_handles(*_ELEMENTWISE)
def _elementwise(graph: Graph, eqn: Any, *values: Value) -> Value:
    return _apply(graph, _ELEMENTWISE[eqn.primitive.name], *values)


@_handles("square")
def _square(graph: Graph, eqn: Any, x: Value) -> Value:
    return _apply(graph, "Mul", x, x)


@_handles("integer_pow")
def _integer_pow(graph: Graph, eqn: Any, x: Value) -> Value:
    power = Value((), array=np.asarray(eqn.params["y"], eqn.outvars[0].aval.dtype))
    return _apply(graph, "Pow", x, power)


@_handles("rsqrt")
def _rsqrt(graph: Graph, eqn: Any, x: Value) -> Value:
    return _apply(graph, "Reciprocal", _apply(graph, "Sqrt", x))


@_handles("erfc")
def _erfc(graph: Graph, eqn: Any, x: Value) -> Value:
    one = Value((), array=np.ones((), eqn.outvars[0].aval.dtype))
    return _apply(graph, "Sub", one, _apply(graph, "Erf", x))


@_handles("copy", "copy_p", "stop_gradient")
def _same(graph: Graph, eqn: Any, x: Value) -> Value:
    return x


@_handles("convert_element_type")
def _convert(graph: Graph, eqn: Any, x: Value) -> Value:
    if eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype:
        return x
    return _apply(graph, "Cast", x, to=helper.np_dtype_to_tensor_dtype(eqn.outvars[0].aval.dtype))


@_handles("select_n")
def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise UserError("ONNX: select_n is exported for two cases.")
    return _apply(graph, "Where", which, cases[1], cases[0])


@_handles("reshape")
def _reshape(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    (x,) = _wholes(graph, eqn, [x]) if len(eqn.invars) == 1 else (x,)
    return graph.reshape(x, shape_of(eqn.outvars[0].aval.shape))


@_handles("squeeze")
def _squeeze(graph: Graph, eqn: Any, x: Value) -> Value:
    dropped = {axis % len(x.shape) for axis in eqn.params["dimensions"]}
    kept = tuple(side for axis, side in enumerate(x.shape) if axis not in dropped)
    return graph.reshape(x, kept)


@_handles("transpose")
def _transpose(graph: Graph, eqn: Any, x: Value) -> Value:
    return graph.transpose(x, eqn.params["permutation"])


@_handles("broadcast_in_dim")
def _broadcast(graph: Graph, eqn: Any, x: Value, *_: Value) -> Value:
    shape: list[int | str] = [1] * len(eqn.params["shape"])
    for axis, side in zip(eqn.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = side
    return graph.reshape(x, tuple(shape))


@_handles("concatenate")
def _concatenate(graph: Graph, eqn: Any, *values: Value) -> Value:
    names = map(graph.name_of, _wholes(graph, eqn, values))
    shape = shape_of(eqn.outvars[0].aval.shape)
    return graph.add("Concat", *names, axis=eqn.params["dimension"], shape=shape)


@_handles("slice")
def _slice(graph: Graph, eqn: Any, x: Value) -> Value:
    (x,) = _wholes(graph, eqn, [x])
    starts, stops = (shape_of(eqn.params[f"{end}_indices"]) for end in ("start", "limit"))
    return graph.slice(x, starts, stops, eqn.params["strides"] or [1] * len(starts))


@_handles("split")
def _split(graph: Graph, eqn: Any, x: Value) -> list[Value]:
    (x,) = _wholes(graph, eqn, [x])
    axis, steps, parts = eqn.params["axis"], [1] * len(x.shape), []
    starts, stops = [0] * len(x.shape), list(x.shape)
    for size in eqn.params["sizes"]:
        stops[axis] = starts[axis] + int(size)
        parts.append(graph.slice(x, tuple(starts), tuple(stops), steps))
        starts[axis] = stops[axis]
    return parts


@_handles("gather")
def _gather(graph: Graph, eqn: Any, x: Value, indices: Value) -> Value:
    """A slice at a known place, which is what indexing by numbers and slices becomes."""
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0].aval.shape)
    one = indices.array is not None and indices.array.ndim == 1
    if not one or len(numbers.offset_dims) != len(shape) or numbers.operand_batching_dims:
        raise UserError("ONNX: gather is exported where it is a slice at a known place.")
    (x, _) = _wholes(graph, eqn, [x, indices])
    starts = [0] * len(x.shape)
    for axis, start in zip(numbers.start_index_map, indices.array.tolist(), strict=True):
        starts[axis] = start
    sizes = shape_of(eqn.params["slice_sizes"])
    stops = tuple(
        side if isinstance(side, str) else start + side
        for start, side in zip(starts, sizes, strict=True)
    )
    return graph.reshape(graph.slice(x, starts, stops, [1] * len(starts)), shape)


@_handles("pad")
def _pad(graph: Graph, eqn: Any, x: Value, fill: Value) -> Value:
    config = [tuple(map(int, sides)) for sides in eqn.params["padding_config"]]
    if any(between or low < 0 or high < 0 for low, high, between in config):
        raise UserError("ONNX: pad is exported at the ends, and does not cut.")
    (x, _) = _wholes(graph, eqn, [x, fill])
    ends = graph.constant([side[0] for side in config] + [side[1] for side in config])
    shape = shape_of(eqn.outvars[0].aval.shape)
    return graph.add("Pad", graph.name_of(x), ends, graph.name_of(fill), shape=shape)


@_handles("reduce_sum", "reduce_max")
def _reduce(graph: Graph, eqn: Any, x: Value) -> Value:
    op = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax"}[eqn.primitive.name]
    (x,) = _wholes(graph, eqn, [x])
    axes = graph.constant(eqn.params["axes"])
    shape = shape_of(eqn.outvars[0].aval.shape)
    return graph.add(op, graph.name_of(x), axes, keepdims=0, shape=shape)


@_handles("dot_general")
def _dot(graph: Graph, eqn: Any, left: Value, right: Value) -> Value:
    """MatMul of (batch..., free, summed) and (batch..., summed, free).

    A side without batch axes is a matrix, the right one: weights, whatever side they came from.
    """
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = _wholes(graph, eqn, [left, right])
    shape = shape_of(eqn.outvars[0].aval.shape)
    sides = [(left, left_sum, left_batch), (right, right_sum, right_batch)]
    free = [
        [axis for axis in range(len(x.shape)) if axis not in (*summed, *batch)]
        for x, summed, batch in sides
    ]
    if not left_batch and right.array is None and left.array is not None:
        product = _times_matrix(graph, sides[1], free[1], sides[0], free[0])
        first, second = len(free[1]), len(free[0])
        return graph.transpose(product, [*range(first, first + second), *range(first)])
    if not left_batch:
        return _times_matrix(graph, sides[0], free[0], sides[1], free[1])
    names, outer = [], []
    for (x, summed, batch), rest, last in zip(sides, free, (False, True), strict=True):
        order = (*batch, *summed, *rest) if last else (*batch, *rest, *summed)
        outer = [x.shape[axis] for axis in batch]
        inner = [_product(x.shape[axis] for axis in axes) for axes in (summed, rest)]
        inner = inner if last else inner[::-1]
        names.append(
            graph.name_of(graph.reshape(graph.transpose(x, order), (*outer, *inner)))
        )
    inner = tuple(_product(x.shape[a] for a in rest) for (x, *_), rest in zip(sides, free, strict=True))
    return graph.reshape(graph.add("MatMul", *names, shape=(*outer, *inner)), shape)


def _times_matrix(graph: Graph, side: Any, free: list[int], matrix: Any, outputs: list[int]) -> Value:
    """Returns (free..., outputs...): rows of `side` times a matrix (summed, outputs)."""
    (x, summed, _), (weights, weights_summed, _) = side, matrix
    inputs = _product(x.shape[axis] for axis in summed)
    rows = tuple(x.shape[axis] for axis in free)
    x = graph.reshape(graph.transpose(x, (*free, *summed)), (*rows, inputs))
    sides = tuple(weights.shape[axis] for axis in outputs)
    weights = graph.transpose(weights, (*weights_summed, *outputs))
    weights = graph.reshape(weights, (inputs, _product(sides)))
    name = graph.name_of(weights) if weights.array is None else graph.weight(weights, axis=1)
    product = graph.add("MatMul", graph.name_of(x), name, shape=(*rows, _product(sides)))
    return graph.reshape(product, (*rows, *sides))


def _product(sides: Iterable[int | str]) -> int:
    sides = tuple(sides)
    if any(isinstance(side, str) for side in sides):
        raise UserError("ONNX: a product over the batch is not exported.")
    return math.prod(sides)


@_handles("conv_general_dilated")
def _conv(graph: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if any(step != 1 for step in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UserError("ONNX: a transposed convolution is not exported.")
    x, kernel = _wholes(graph, eqn, [x, kernel])
    x = graph.transpose(x, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    name = graph.name_of(kernel) if kernel.array is None else graph.weight(kernel, axis=0)
    lows, highs = zip(*params["padding"], strict=True)
    out = shape_of(eqn.outvars[0].aval.shape)
    y = graph.add(
        "Conv",
        graph.name_of(x),
        name,
        strides=_ints(params["window_strides"]),
        pads=_ints((*lows, *highs)),
        dilations=_ints(params["rhs_dilation"]),
        group=int(params["feature_group_count"]),
        shape=tuple(out[axis] for axis in numbers.out_spec),
    )
    return graph.transpose(y, np.argsort(numbers.out_spec))


@_handles("reduce_window_max")
def _max_pool(graph: Graph, eqn: Any, x: Value) -> Value:
    params = eqn.params
    window, strides = _ints(params["window_dimensions"]), _ints(params["window_strides"])
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if len(window) != 4 or (window[0], window[3], strides[0], strides[3]) != (1,) * 4 or dilated:
        raise UserError("ONNX: a maximum over windows is exported over height and width.")
    (x,) = _wholes(graph, eqn, [x])
    lows, highs = zip(*params["padding"][1:3], strict=True)
    b, h, w, c = shape_of(eqn.outvars[0].aval.shape)
    y = graph.add(
        "MaxPool",
        graph.name_of(graph.transpose(x, (0, 3, 1, 2))),
        kernel_shape=window[1:3],
        strides=strides[1:3],
        pads=_ints((*lows, *highs)),
        shape=(b, c, h, w),
    )
    return graph.transpose(y, (0, 2, 3, 1))


def _ints(numbers: Iterable[Any]) -> list[int]:
    return [int(number) for number in numbers]

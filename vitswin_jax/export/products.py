"""JAX's products, convolutions and maxima over windows in ONNX."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.export.graph import Graph, Value
from vitswin_jax.export.primitives import Handler, shape_of, wholes


def _dot(graph: Graph, eqn: Any, left: Value, right: Value) -> Value:
    """MatMul of (batch..., free, summed) and (batch..., summed, free).

    A side without batch axes is a matrix, the right one: weights, whatever side they came from.
    """
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = wholes(graph, eqn, [left, right])
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
    factors, outer = [], []
    for (x, summed, batch), rest, last in zip(sides, free, (False, True), strict=True):
        order = (*batch, *summed, *rest) if last else (*batch, *rest, *summed)
        outer = [x.shape[axis] for axis in batch]
        inner = [_product(x.shape[axis] for axis in axes) for axes in (summed, rest)]
        inner = inner if last else inner[::-1]
        factors.append(graph.reshape(graph.transpose(x, order), (*outer, *inner)))
    kept = (_product(x.shape[a] for a in rest) for (x, *_), rest in zip(sides, free, strict=True))
    return graph.reshape(graph.add("MatMul", *factors, shape=(*outer, *kept)), shape)


def _times_matrix(
    graph: Graph, side: Any, free: list[int], matrix: Any, outputs: list[int]
) -> Value:
    """Returns (free..., outputs...): rows of `side` times a matrix (summed, outputs)."""
    (x, summed, _), (weights, weights_summed, _) = side, matrix
    inputs = _product(x.shape[axis] for axis in summed)
    rows = tuple(x.shape[axis] for axis in free)
    outer = (1, *rows) if graph.deep_products and len(rows) == 1 else rows
    x = graph.reshape(graph.transpose(x, (*free, *summed)), (*outer, inputs))
    sides = tuple(weights.shape[axis] for axis in outputs)
    weights = graph.transpose(weights, (*weights_summed, *outputs))
    weights = graph.reshape(weights, (inputs, _product(sides)))
    weights = graph.weight(weights, axis=1)
    product = graph.add("MatMul", x, weights, shape=(*outer, _product(sides)))
    return graph.reshape(product, (*rows, *sides))


def _product(sides: Iterable[int | str]) -> int | str:
    """Returns the size of axes made one; text, where that depends on the batch."""
    sides = tuple(sides)
    if any(isinstance(side, str) for side in sides):
        return "*".join(f"({side})" for side in sides if side != 1)
    return math.prod(sides)


def _conv(graph: Graph, eqn: Any, x: Value, kernel: Value) -> Value:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if any(step != 1 for step in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UserError("ONNX: a transposed convolution cannot be exported; export to StableHLO.")
    x, kernel = wholes(graph, eqn, [x, kernel])
    x = graph.transpose(x, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)
    lows, highs = zip(*params["padding"], strict=True)
    out = shape_of(eqn.outvars[0].aval.shape)
    y = graph.add(
        "Conv",
        x,
        graph.weight(kernel, axis=0),
        strides=_ints(params["window_strides"]),
        pads=_ints((*lows, *highs)),
        dilations=_ints(params["rhs_dilation"]),
        group=int(params["feature_group_count"]),
        shape=tuple(out[axis] for axis in numbers.out_spec),
    )
    return graph.transpose(y, np.argsort(numbers.out_spec).tolist())


def _max_pool(graph: Graph, eqn: Any, x: Value) -> Value:
    params = eqn.params
    window, strides = _ints(params["window_dimensions"]), _ints(params["window_strides"])
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if len(window) != 4 or (window[0], window[3], strides[0], strides[3]) != (1,) * 4 or dilated:
        raise UserError("ONNX: a maximum over windows can be exported only over height and width.")
    (x,) = wholes(graph, eqn, [x])
    lows, highs = zip(*params["padding"][1:3], strict=True)
    b, h, w, c = shape_of(eqn.outvars[0].aval.shape)
    y = graph.add(
        "MaxPool",
        graph.transpose(x, (0, 3, 1, 2)),
        kernel_shape=window[1:3],
        strides=strides[1:3],
        pads=_ints((*lows, *highs)),
        shape=(b, c, h, w),
    )
    return graph.transpose(y, (0, 2, 3, 1))


def _ints(numbers: Iterable[Any]) -> list[int]:
    return [int(number) for number in numbers]


HANDLERS: dict[str, Handler] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "reduce_window_max": _max_pool,
}

"""GELU and layer norm in ONNX, as runtimes know them: each is one kernel there, not a dozen.

A model's program has these functions by their names (`nn.xla`, `nn.mlp`). `LayerNormalization` is
an operator. A GELU is written as the nodes in whose place onnxruntime, OpenVINO and TensorRT put
their own kernel, for its operator is younger than `onnx.OPSET`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from vitswin_jax.export.graph import Graph, Value

Handler = Callable[..., Value]
Nodes = Mapping[str, onnx.NodeProto]
"""Names of values -> the nodes that make them."""


def handler_of(inner: Any) -> Handler | None:
    """Returns the handler of a whole function, given its jaxpr; None for other functions."""
    made = {one.primitive.name for one in inner.eqns}
    name = inner.debug_info.func_name
    if name == "_layer_norm" and len(inner.invars) == 3 and "rsqrt" in made:
        return functools.partial(_layer_norm, _epsilon(inner))
    if name == "gelu" and len(inner.invars) == 1 and "erf" in made:
        return _gelu
    if name == "gelu_tanh" and len(inner.invars) == 1 and "tanh" in made:
        return _gelu_tanh
    return None


def _epsilon(inner: Any) -> float:
    """Returns the number that a norm adds to the variance before it takes the root."""
    made = {eqn.outvars[0]: eqn for eqn in inner.eqns}
    (root,) = (eqn for eqn in inner.eqns if eqn.primitive.name == "rsqrt")
    (number,) = (atom.val for atom in made[root.invars[0]].invars if hasattr(atom, "val"))
    return float(number)


def _layer_norm(epsilon: float, graph: Graph, x: Value, scale: Value, bias: Value) -> Value:
    return graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon, shape=x.shape)


def _gelu(graph: Graph, x: Value) -> Value:
    """Adds x (1 + erf(x / √2)) / 2."""
    add, number = functools.partial(graph.add, shape=x.shape), _number
    erf = add("Erf", add("Div", x, number(math.sqrt(2))))
    return add("Mul", add("Mul", x, add("Add", erf, number(1.0))), number(0.5))


def _gelu_tanh(graph: Graph, x: Value) -> Value:
    """Adds x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    add, number = functools.partial(graph.add, shape=x.shape), _number
    cube = add("Mul", add("Pow", x, number(3.0)), number(0.044715))
    tanh = add("Tanh", add("Mul", add("Add", x, cube), number(math.sqrt(2 / math.pi))))
    return add("Mul", add("Mul", x, number(0.5)), add("Add", tanh, number(1.0)))


def _number(number: float) -> Value:
    return Value((), array=np.asarray(number, np.float32))


def with_softmax(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Returns the nodes of a graph with one `Softmax` for each attention.

    `attention.attend` divides by the sum of the exponentials after the product with the values.
    In ONNX that is six nodes that each read or write all weights; a runtime's own softmax is one.
    """
    made = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    replaced: dict[str, onnx.NodeProto] = {}
    for exp in (node for node in nodes if node.op_type == "Exp"):
        logits = _less_their_maximum(exp, made)
        division = _divided_by_the_sum(exp, readers)
        if logits is None or division is None:
            continue
        (weights,), (mixed,) = exp.output, division.output
        replaced[weights] = helper.make_node("Softmax", [logits], [weights], weights, axis=-1)
        replaced[mixed] = helper.make_node("Identity", [division.input[0]], [mixed], mixed)
    return _read([replaced.get(node.output[0], node) for node in nodes])


def _read(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Returns the nodes that the last one depends on; onnxruntime would compute the others too."""
    needed, kept = set(nodes[-1].output), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    return kept[::-1]


def _less_their_maximum(exp: onnx.NodeProto, made: Nodes) -> str | None:
    """Returns the x of exp(x - max(x)), the maximum over the last axis; None for another exp."""
    difference = made.get(exp.input[0])
    if difference is None or difference.op_type != "Sub":
        return None
    logits, maximum = difference.input
    node = made.get(maximum)
    while node is not None and node.op_type == "Reshape":
        node = made.get(node.input[0])
    if node is None or node.op_type != "ReduceMax" or node.input[0] != logits:
        return None
    return logits


def _divided_by_the_sum(
    exp: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]]
) -> onnx.NodeProto | None:
    """Returns the division by the sum of exponentials, of their product with something, or None."""
    kinds = {node.op_type: node for node in readers[exp.output[0]]}
    if kinds.keys() != {"ReduceSum", "MatMul"} or len(readers[exp.output[0]]) != 2:
        return None
    ends = []
    for start in ("ReduceSum", "MatMul"):
        (node, *more) = readers[kinds[start].output[0]]
        while node.op_type == "Reshape" and not more:
            (node, *more) = readers[node.output[0]]
        ends.append(node)
    return ends[0] if ends[0] is ends[1] and ends[0].op_type == "Div" else None

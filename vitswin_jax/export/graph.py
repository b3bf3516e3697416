"""An ONNX graph under construction: its nodes, constants, and the facts about each value.

A shape is a tuple of numbers and, for a side that depends on the images' shape, of its formula as
JAX writes it: "batch", "rows*columns + 1". Symbols in it are the graph's `symbols`.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitswin_jax.core.types import UserError
from vitswin_jax.export.quantize import quantize_channels

Shape = tuple[int | str, ...]

IMAGES = "images"
LOGITS = "logits"


@dataclass(frozen=True)
class Value:
    """A value of the graph, or an array that is known already and is no part of it yet.

    `shape` may have 1 where the program has more: it is broadcast where something needs it.
    """

    shape: Shape
    name: str = ""
    """Of a value of the graph."""
    array: np.ndarray | None = None
    parameter: str | None = None
    """Which parameter the array is, at most reshaped and transposed."""


class Graph:
    """Collects nodes and constants; equal constants are stored once."""

    def __init__(
        self,
        *,
        symbols: Mapping[str, tuple[int, int]],
        quantized: Collection[str] = (),
        deep_products: bool = False,
    ) -> None:
        """Takes each symbol's axis of the images, and the number of its sides that make it 1."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.deep_products = deep_products
        """Whether rows that a stored matrix multiplies have a batch axis, of 1 at least.

        onnxruntime makes one node, Gemm, of a product of two matrices and an addition; it has no
        Gemm from 8-bit numbers to float32, but such a product (MatMulIntegerToFloat).
        """
        self._symbols = symbols
        self._quantized = quantized  # parameters whose matrices are stored as int8
        self._constants: dict[tuple[Any, ...], str] = {}
        self._names: dict[str, int] = {}

    def add(self, op: str, *inputs: str | Value, shape: Shape, **attributes: Any) -> Value:
        """Appends a node; returns its output, which has `shape`."""
        names = [self.name_of(x) if isinstance(x, Value) else x for x in inputs]
        name = self._unique(op)
        self.nodes.append(helper.make_node(op, names, [name], name=name, **attributes))
        return Value(shape, name=name)

    def constant(self, array: np.ndarray | Sequence[int], *, name: str = "constant") -> str:
        """Stores an array, int64 if it is a sequence of numbers; returns its name."""
        if not isinstance(array, np.ndarray):
            array = np.asarray(array, np.int64)
        array = np.ascontiguousarray(array).reshape(array.shape)  # which makes a scalar a vector
        digest = hashlib.blake2b(array.tobytes()).digest()
        key = (array.dtype.str, array.shape, digest)
        if key not in self._constants:
            self._constants[key] = self._unique(name)
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def name_of(self, value: Value) -> str:
        """Returns the name of a value in the graph, storing it if it is an array."""
        if value.array is None:
            return value.name
        return self.constant(value.array, name=value.parameter or "constant")

    def weight(self, value: Value, *, axis: int) -> Value:
        """Returns a matrix whose output channels are along `axis`, as products take it.

        A quantised parameter is stored as int8 and a scale for each channel.
        """
        if value.array is None or value.parameter not in self._quantized:
            return value
        # No DequantizeLinear: onnxruntime would make it and the product one node that rounds the
        # activations to 8 bits as well, where nobody asked for it.
        codes, scale = quantize_channels(value.array, axis=axis)
        stored = self.constant(codes, name=f"{value.parameter}/int8")
        scales = self.constant(scale, name=f"{value.parameter}/scale")
        whole = self.add("Cast", stored, to=onnx.TensorProto.FLOAT, shape=value.shape)
        return self.add("Mul", whole, scales, shape=value.shape)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Returns the value in another shape of as many elements."""
        if value.shape == shape:
            return value
        numbers = [side for side in shape if not isinstance(side, str)]
        if value.array is not None and len(numbers) == len(shape):
            return Value(shape, array=value.array.reshape(numbers), parameter=value.parameter)
        # Reshape takes a 0 as the side that the value has, and one -1 as what is left.
        before = dict(enumerate(value.shape))
        sides = [
            0 if isinstance(side, str) and before.get(axis) == side else side
            for axis, side in enumerate(shape)
        ]
        if formulas := [side for side in sides if isinstance(side, str)]:
            sides[sides.index(max(formulas, key=len))] = -1
        return self.add("Reshape", value, self.sides(sides), shape=shape)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Returns the value with its axes in another order."""
        order = tuple(int(axis) for axis in order)
        if order == tuple(range(len(order))):
            return value
        shape = tuple(value.shape[axis] for axis in order)
        if value.array is not None:
            return Value(shape, array=value.array.transpose(order), parameter=value.parameter)
        return self.add("Transpose", value, perm=order, shape=shape)

    def whole(self, value: Value, shape: Shape) -> Value:
        """Returns the value broadcast to `shape`."""
        if value.shape == shape:
            return value
        numbers = [side for side in shape if not isinstance(side, str)]
        if value.array is not None and len(numbers) == len(shape):
            return Value(shape, array=np.broadcast_to(value.array, numbers))
        return self.add("Expand", value, self.sides(shape), shape=shape)

    def slice(
        self, value: Value, starts: Shape, stops: Shape, steps: Sequence[int], *, shape: Shape
    ) -> Value:
        """Returns value[start:stop:step, ...], which has `shape`."""
        cut = [
            axis
            for axis, side in enumerate(value.shape)
            if (starts[axis], stops[axis], steps[axis]) != (0, side, 1)
        ]
        if not cut:
            return value
        places = [(starts[axis], stops[axis], axis, int(steps[axis])) for axis in cut]
        names = [self.sides(sides) for sides in zip(*places, strict=True)]
        return self.add("Slice", value, *names, shape=shape)

    def sides(self, sides: Sequence[int | str]) -> str:
        """Returns the name of a vector of sides, int64."""
        if not any(isinstance(side, str) for side in sides):
            return self.constant([int(side) for side in sides])
        names = [self._side(side) for side in sides]
        if len(names) == 1:
            return names[0]
        return self._once("Concat", *names, axis=0, shape=(len(names),))

    def number(self, side: int | str) -> Value:
        """Returns a side as a value without axes, int64."""
        return self.add("Squeeze", self.sides([side]), self.constant([0]), shape=())

    def _side(self, side: int | str) -> str:
        """Returns the name of a vector of one side, a number or a formula."""
        if not isinstance(side, str):
            return self.constant([int(side)])
        return self._formula(ast.parse(side.replace("^", "**"), mode="eval").body)

    def _formula(self, formula: ast.expr) -> str:
        if isinstance(formula, ast.Name):
            axis, step = self._symbols[formula.id]
            side = self._once("Shape", IMAGES, start=axis, end=axis + 1, shape=(1,))
            return side if step == 1 else self._once("Div", side, self.constant([step]))
        if isinstance(formula, ast.Constant) and isinstance(formula.value, int):
            return self.constant([formula.value])
        if isinstance(formula, ast.UnaryOp):  # - is the only one
            return self._once("Neg", self._formula(formula.operand))
        if isinstance(formula, ast.BinOp):
            name, parts = type(formula.op).__name__, [formula.left, formula.right]
        elif isinstance(formula, ast.Call):
            name, parts = ast.unparse(formula.func), formula.args
        else:
            raise UserError(f"ONNX: a side of {ast.unparse(formula)} cannot be exported.")
        left, right = (self._formula(part) for part in parts)
        if name == "floordiv":  # ONNX rounds a quotient of integers to 0
            left = self._once("Sub", left, self._once("Mod", left, right))
        return self._once(_OPERATORS[name], left, right)

    def _once(self, op: str, *inputs: str, shape: Shape = (1,), **attributes: Any) -> str:
        """Returns the name of a node's output; equal nodes of sides are one."""
        key = (op, *inputs, *attributes.values())
        if key not in self._constants:
            self._constants[key] = self.add(op, *inputs, shape=shape, **attributes).name
        return self._constants[key]

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}_{count}" if count else name


_OPERATORS = {
    "Add": "Add", "Sub": "Sub", "Mult": "Mul", "Pow": "Pow",
    "floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min",
}  # fmt: skip
"""Names in formulas of sides -> operators of integers; the remainder has the divisor's sign."""

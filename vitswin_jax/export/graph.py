"""An ONNX graph under construction: its nodes, constants, and the facts about each value.

A shape is a tuple of numbers and, for what depends on the batch, of its symbol's text ("batch").
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitswin_jax.core.types import UserError
from vitswin_jax.export.quantize import quantize_channels

Shape = tuple[int | str, ...]

BATCH = "batch"
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

    def __init__(self, *, quantized: Collection[str] = (), deep_products: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.deep_products = deep_products
        """Whether rows that a stored matrix multiplies have a batch axis, of 1 at least.

        onnxruntime makes one node, Gemm, of a product of two matrices and an addition; it has no
        Gemm from 8-bit numbers to float32, but such a product (MatMulIntegerToFloat).
        """
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
        if len(shape) - len(numbers) > 1:
            raise UserError(f"ONNX: no Reshape gives {shape}: two sides depend on the batch.")
        sides = self.constant([-1 if isinstance(side, str) else side for side in shape])
        return self.add("Reshape", value, sides, shape=shape)

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
        if unknown := {side for side in shape if isinstance(side, str)} - {BATCH}:
            raise UserError(f"ONNX: cannot broadcast to {', '.join(sorted(unknown))}.")
        sides = [
            self._batch() if isinstance(side, str) else self.constant([side]) for side in shape
        ]
        target = self.add("Concat", *sides, axis=0, shape=(len(shape),))
        return self.add("Expand", value, target, shape=shape)

    def slice(
        self, value: Value, starts: Sequence[int], stops: Shape, steps: Sequence[int]
    ) -> Value:
        """Returns value[start:stop:step, ...]; what depends on the batch is never cut."""
        cut = [
            axis
            for axis, side in enumerate(value.shape)
            if (starts[axis], stops[axis], steps[axis]) != (0, side, 1)
        ]
        if not cut:
            return value
        shape, places = list(value.shape), []
        for axis in cut:
            start, stop, step = starts[axis], stops[axis], steps[axis]
            if isinstance(shape[axis], str) or isinstance(stop, str):
                raise UserError(f"ONNX: cannot cut axis {axis} of {value.shape}.")
            shape[axis] = -(-(stop - start) // step)
            places.append((int(start), int(stop), axis, int(step)))
        names = [self.constant(numbers) for numbers in zip(*places, strict=True)]
        return self.add("Slice", value, *names, shape=tuple(shape))

    def _batch(self) -> str:
        key = ("batch",)
        if key not in self._constants:
            node = self.add("Shape", IMAGES, start=0, end=1, shape=(1,))
            self._constants[key] = node.name
        return self._constants[key]

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}_{count}" if count else name

"""ONNX: a model's jaxpr, equation by equation, as nodes that every ONNX runtime has.

What does not depend on the images, such as the bias tables' look-up, is computed here and stored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
from onnx import helper

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.types import UserError
from vitswin_jax.export import fused, primitives, products
from vitswin_jax.export.graph import IMAGES, Graph, Shape, Value
from vitswin_jax.export.primitives import shape_of
from vitswin_jax.export.program import (
    BATCH,
    COUNTS,
    SIDES,
    Difference,
    Program,
    Run,
    check_export,
)
from vitswin_jax.models.open_size import step_of

OPSET = 18
"""The operators' version; onnxruntime has it since 1.14."""
_IR = 8  # the file format's version that came with the opset
_LARGEST = 2**31 - 2**20  # of a protocol buffer, less the nodes

_HANDLERS = primitives.HANDLERS | products.HANDLERS

# Equations that only hold a jaxpr, whose own equations take their place.
_INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")

# What keeps a parameter's elements, or keeps them small: done without JAX even where all is known.
# A side of the images is not known, though its equation has no input.
_STRUCTURAL = (
    "reshape", "transpose", "squeeze", "broadcast_in_dim", "convert_element_type", "copy",
    "dim_as_value",
)  # fmt: skip


def export_onnx(
    path: str | os.PathLike[str], program: Program, *, images: np.ndarray | None = None
) -> Difference:
    """Writes a program as an ONNX file, after onnxruntime has run it and JAX agrees.

    The file is written whole or not at all; its metadata has what `Program.describe` says. Returns
    how far the two are apart on `images`, or on photos. Raises UserError for a model that cannot be
    exported, one larger than such a file may be, and an export that differs.
    """
    model = to_onnx(program)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        return check_export(program, load_onnx(temporary), images)


def load_onnx(path: str | os.PathLike[str]) -> Run:
    """Returns the function from images to logits that an ONNX file holds, run by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    data = Path(path).read_bytes()  # onnxruntime takes no name that is not UTF-8
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    return lambda array: session.run(None, {images.name: array})[0]


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the metadata of an ONNX file."""
    model = onnx.load(Path(path), load_external_data=False)
    return {prop.key: json.loads(prop.value) for prop in model.metadata_props}


def to_onnx(program: Program, *, deep_products: bool = False, **described: Any) -> onnx.ModelProto:
    """Returns a program as an ONNX model that is no file yet.

    `deep_products` is for products that become 8-bit ones (`Graph`); `described` goes into the
    metadata.
    """
    names = list(program.params)
    traced = jax.make_jaxpr(
        lambda arrays, x: program.apply(dict(zip(names, arrays, strict=True)), x)
    )(list(program.params.values()), program.image_spec())
    graph = Graph(symbols=_symbols(program), quantized=program.codes, deep_products=deep_products)
    weights = [
        Value(array.shape, array=array, parameter=name) for name, array in program.params.items()
    ]
    spec = shape_of(program.image_spec().shape)
    images = Value(program.dimensions, name=IMAGES)
    if images.shape != spec:  # fails for images that patches do not divide
        images = graph.add("Reshape", images, graph.sides(spec), shape=spec)
    with jax.default_matmul_precision("highest"):
        (logits,) = _inline(graph, traced.jaxpr, traced.consts, [*weights, images])
    graph.nodes.append(helper.make_node("Identity", [graph.name_of(logits)], [program.output]))
    size = sum(len(tensor.raw_data) for tensor in graph.initializers)
    if size > _LARGEST:
        raise UserError(
            f"{program.metadata.name}: an ONNX file holds 2 GB, and the weights are "
            f"{size / 1e9:.1f}; quantise them, or export to StableHLO."
        )
    element = helper.np_dtype_to_tensor_dtype(program.image_dtype)
    taken = helper.make_tensor_value_info(IMAGES, element, program.dimensions)
    given = helper.make_tensor_value_info(program.output, onnx.TensorProto.FLOAT, logits.shape)
    nodes = fused.with_softmax(graph.nodes)
    read = {name for node in nodes for name in node.input}
    stored = [tensor for tensor in graph.initializers if tensor.name in read]
    model = helper.make_model(
        helper.make_graph(nodes, program.metadata.name, [taken], [given], stored),
        producer_name="vitswin_jax",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR,
    )
    described = program.describe(opset=OPSET, **described)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in described.items()})
    onnx.checker.check_model(model)
    return model


def _symbols(program: Program) -> dict[str, tuple[int, int]]:
    """Returns the axis of the images, and the step of its side, of each symbol of `image_spec`."""
    steps = zip(SIDES, COUNTS, step_of(program.model), strict=True)
    counts = {count: (axis, step) for axis, (_, count, step) in enumerate(steps, 1)}
    return {BATCH: (0, 1), SIDES[0]: (1, 1), SIDES[1]: (2, 1)} | counts


def _inline(
    graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
    """Adds a jaxpr's equations to a graph; returns the values of its outputs."""

    def read(atom: Any) -> Value:
        if not hasattr(atom, "val"):
            return values[atom]
        array = np.asarray(atom.val, atom.aval.dtype)
        return Value(array.shape, array=array)

    known = [Value(np.shape(array), array=np.asarray(array)) for array in consts]
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*known, *inputs), strict=True))
    for eqn in jaxpr.eqns:
        taken, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
        shapes = [shape_of(atom.aval.shape) for atom in eqn.outvars]
        if name in _INLINED:
            inner = next(p for p in eqn.params.values() if hasattr(p, "jaxpr"))
            given: Value | list[Value]
            whole = None if _is_known(taken, shapes) else fused.handler_of(inner.jaxpr)
            if whole is not None:
                given = whole(graph, *primitives.wholes(graph, eqn, taken))
            else:
                given = _inline(graph, inner.jaxpr, inner.consts, taken)
        elif name in _HANDLERS and (name in _STRUCTURAL or not _is_known(taken, shapes)):
            given = _HANDLERS[name](graph, eqn, *taken)
        elif _is_known(taken, shapes):
            given = _evaluate(eqn, taken)
        else:
            raise UserError(f"ONNX: JAX's {name} is not exported; StableHLO has all that JAX has.")
        outputs = given if isinstance(given, list) else [given]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_known(inputs: Sequence[Value], shapes: Sequence[Shape]) -> bool:
    """Returns whether an equation can be computed without images, whatever the batch."""
    return all(value.array is not None for value in inputs) and not any(
        isinstance(side, str) for shape in shapes for side in shape
    )


def _evaluate(eqn: Any, inputs: Sequence[Value]) -> list[Value]:
    """Computes an equation whose inputs are known."""
    arrays = [
        np.broadcast_to(np.asarray(value.array), atom.aval.shape)
        for value, atom in zip(inputs, eqn.invars, strict=True)
    ]
    found = eqn.primitive.bind(*arrays, **eqn.params)
    found = found if eqn.primitive.multiple_results else [found]
    return [Value(array.shape, array=np.asarray(array)) for array in found]

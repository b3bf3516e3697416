"""ONNX with 8-bit products: weights and activations rounded to int8 codes, by onnxruntime's tools.

QuantizeLinear and DequantizeLinear (QDQ) stand at both factors of each product with a stored
matrix. Runtimes make each such group one product of 8-bit codes. Weights have one scale for each
output channel, as `quantize_channels` has them. The input of a product has one scale and one zero
point, from the smallest and the largest value on calibration images (Krishnamoorthi 2018,
arXiv:1806.08342, section 3.1). `kinds.CALIBRATED` has the two forms of its codes.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from vitswin_jax.core.atomic import replacing
from vitswin_jax.export.graph import IMAGES
from vitswin_jax.export.kinds import CALIBRATED, Activations
from vitswin_jax.export.onnx import load_onnx, to_onnx
from vitswin_jax.export.program import Difference, Program, check_export, compare, sample_images

_BATCH = 8  # calibration images that run at once


def export_calibrated(
    path: str | os.PathLike[str],
    program: Program,
    calibration: np.ndarray,
    *,
    kind: str = "int8-qdq",
    images: np.ndarray | None = None,
) -> tuple[Difference, Difference]:
    """Writes a program as an ONNX file with 8-bit products.

    `calibration` are images as the program takes them, (n, h, w, c); `kind` is one of
    `kinds.CALIBRATED`. The file is written whole or not at all. Returns the difference of the
    float32 file from JAX, which must be rounding, and the difference of the written file from JAX.
    Raises UserError for what `export_onnx` refuses, and where a logit of the written file is not a
    finite number.
    """
    images = sample_images(program) if images is None else images
    codes = CALIBRATED[kind]
    model = to_onnx(
        program, deep_products=True, weights=codes.described, calibration_images=len(calibration)
    )
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        exact = check_export(program, load_onnx(temporary), images)
        temporary.write_bytes(quantize_products(model, calibration, codes).SerializeToString())
        return exact, compare(program.runner(), load_onnx(temporary), [images])


def quantize_products(
    model: onnx.ModelProto, calibration: np.ndarray, codes: Activations
) -> onnx.ModelProto:
    """Returns a copy of a float32 model whose products with stored matrices are 8-bit ones."""
    stored = {tensor.name for tensor in model.graph.initializer}
    products = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    ]
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    add_pre_process_metadata(copied)  # without it, onnxruntime advises to optimise the graph first
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "quantized.onnx"
        quantize_static(
            copied,
            written,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            per_channel=True,
            activation_type=QuantType.QInt8 if codes.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": codes.symmetric,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
        quantized = onnx.load(written)
    del quantized.metadata_props[:]  # onnxruntime's own are no JSON
    quantized.metadata_props.extend(model.metadata_props)
    quantized.producer_name = model.producer_name
    onnx.checker.check_model(quantized)
    return quantized


class _Reader(CalibrationDataReader):
    """Gives onnxruntime the calibration images, batch after batch."""

    def __init__(self, images: np.ndarray) -> None:
        """Takes images as the program takes them."""
        starts = range(0, len(images), _BATCH)
        self._batches = iter([images[start : start + _BATCH] for start in starts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch by the name of the input; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}

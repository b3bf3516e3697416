"""8-bit products: codes, scales and zero points as the formulas give them, and run as such."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from kinds import mostly_long
from onnx import numpy_helper

from vitswin_jax.core.types import UserError
from vitswin_jax.export.calibrated import export_calibrated
from vitswin_jax.export.kinds import CALIBRATED
from vitswin_jax.export.onnx import load_onnx, read_description, to_onnx
from vitswin_jax.export.program import sample_images
from vitswin_jax.export.quantize import quantize_channels


@pytest.fixture(scope="module", name="kind", params=list(CALIBRATED))
def kind_of(request):
    return request.param


@pytest.fixture(scope="module", params=mostly_long(["vit", "swin"], ["vit"]))
def exported(request, kind, make, tmp_path_factory):
    """A small model's program, its calibration images, the written model, both differences."""
    program = make(request.param)
    path = tmp_path_factory.mktemp("calibrated") / "model.onnx"
    images = np.random.default_rng(1).normal(size=(11, *program.image_shape)).astype(np.float32)
    return program, images, path, export_calibrated(path, program, images, kind=kind)


def test_products_have_codes_of_weights_and_of_inputs(exported, kind):
    program, images, path, _ = exported
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    pairs = [[made.get(name) for name in node.input] for node in products]
    rounded = [
        [node for node in pair if node is not None and node.op_type == "DequantizeLinear"]
        for pair in pairs
    ]
    assert {len(nodes) for nodes in rounded} == {0, 2}  # 0: of queries and keys, maps and values
    weights = {pair[1].input[0].removesuffix("_quantized"): pair for pair in rounded if pair}
    kernels = {name for name in program.params if name.endswith("kernel")}
    assert {name for name in kernels if "patch_embed" not in name} == weights.keys()
    float32 = to_onnx(program, deep_products=True).graph.initializer
    matrices = {t.name: numpy_helper.to_array(t) for t in float32}
    seen = ranges(program, images, [pair[0] for pair in weights.values()], made)
    for (name, (data, matrix)), (low, high) in zip(weights.items(), seen, strict=True):
        codes, scale, zero = (stored[x] for x in matrix.input)
        want, steps = quantize_channels(matrices[name], axis=1)
        np.testing.assert_allclose(scale, steps[0], rtol=1e-6)
        assert np.abs(codes.astype(int) - want).max() <= 1  # where rounding decides a tie
        assert (codes == want).mean() > 0.99
        assert not zero.any()
        step, shift = (stored[x] for x in data.input[1:])
        if kind == "int8-qdq":
            assert step == pytest.approx((high - low) / 255, rel=1e-5)
            assert shift == round(-low / step)
            assert shift.dtype == np.uint8
        else:
            assert step == pytest.approx(max(high, -low) / 127, rel=1e-5)


def test_symmetric_codes_are_what_tensorrt_takes(exported, kind):
    """All int8 with zero points of 0; one scale for activations, one per output for weights."""
    _, _, path, _ = exported
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    coded = [node for node in graph.node if node.op_type.endswith("quantizeLinear")]
    coded += [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(coded) > 10
    zeros = [stored[node.input[2]] for node in coded]
    if kind == "int8-qdq":
        assert any(zero.any() for zero in zeros)
        return
    for node, zero in zip(coded, zeros, strict=True):
        scale = stored[node.input[1]]
        assert (zero.dtype, scale.dtype) == (np.int8, np.float32)
        assert not zero.any()
        assert (scale > 0).all()
        assert zero.shape == scale.shape
        weights = stored.get(node.input[0])
        if weights is None:
            assert scale.shape == ()
        else:
            (axis,) = (item.i for item in node.attribute if item.name == "axis")
            assert (weights.dtype, axis, scale.shape) == (np.int8, 1, weights.shape[1:])
            assert weights.min() >= -127


def ranges(program, images, dequantized, made):
    """Returns the smallest and largest value of products' inputs, 0 between, over all images."""
    names = [made[node.input[0]].input[0] for node in dequantized]
    model = to_onnx(program, deep_products=True)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = [session.run(names, {"images": image[None]}) for image in images]
    for column in zip(*values, strict=True):
        yield min(0, *(x.min() for x in column)), max(0, *(x.max() for x in column))


def test_onnxruntime_computes_them_in_8_bits(exported, tmp_path):
    """Each becomes one node of 8-bit factors; a Gemm would compute in float32."""
    _, _, path, _ = exported
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    want = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"]
    assert ops.count("MatMulIntegerToFloat") == len(want) / 2
    assert "DequantizeLinear" not in ops


def test_it_is_near_the_float32_model_in_any_batch(exported, forward):
    program, images, path, (exact, lost) = exported
    assert exact.is_rounding
    run, want = load_onnx(path), forward(program, images)
    logits = run(images)
    assert 1e-3 * want.std() < np.abs(logits - want).max() < 0.25 * want.std()
    assert 1e-3 < lost.largest / lost.std < 0.5
    np.testing.assert_allclose(run(images[4:5]), logits[4:5], atol=1e-4)
    said = read_description(path)
    assert said["weights"].startswith("int8 products, one scale for each output channel")
    assert said["calibration_images"] == len(images)
    assert said["class_names"] == list(program.metadata.class_names)


@pytest.mark.long
def test_weights_that_are_not_numbers_leave_no_file(make, tmp_path):
    program = make("vit")
    broken = {**program.params, "head/bias": np.full(5, np.nan, np.float32)}
    broken = dataclasses.replace(program, params=broken)
    with pytest.raises(UserError, match="not finite numbers"):
        export_calibrated(tmp_path / "m.onnx", broken, sample_images(program))
    assert not list(tmp_path.iterdir())

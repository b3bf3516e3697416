"""OpenVINO, where it is installed, gives JAX's numbers for each kind of file that we write."""

import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax.export.calibrated import export_calibrated
from vitswin_jax.export.kinds import CALIBRATED
from vitswin_jax.export.onnx import export_onnx, load_onnx
from vitswin_jax.export.program import sample_images
from vitswin_jax.weights.resize import bicubic_antialiased

PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
KINDS = {
    "float32": {},
    "uint8": {"uint8": True},
    "int8": {"quantize": True},
    "any-size": {"resized": bicubic_antialiased},
}


@pytest.fixture(name="run", scope="module")
def run_by_openvino():
    openvino = pytest.importorskip("openvino")

    def run(path, images):
        return openvino.Core().compile_model(str(path), "CPU", PRECISE)([images])[0]

    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "key", mostly_long(["vit", "pool", "rotary", "swin", "swin_mlp", "swinv2"], ["vit", "swin"])
)
def test_it_gives_jaxs_numbers(run, make, tmp_path, key, kind):
    program = make(key, **KINDS[kind])
    export_onnx(tmp_path / "m.onnx", program)
    for size in (program.size, *program.checked_sizes):
        images = sample_images(program.at(size))
        want = program.runner()(images)
        for batch in (slice(0, 1), slice(None)):
            got = run(tmp_path / "m.onnx", images[batch])
            assert np.abs(got - want[batch]).max() < 1e-4 * want.std()


@pytest.mark.parametrize("kind", CALIBRATED)
@pytest.mark.parametrize("key", mostly_long(["vit", "swin", "swinv2"], ["vit"]))
def test_8_bit_products_are_near(run, make, forward, tmp_path, key, kind):
    """As near to JAX as onnxruntime is: both round the same inputs by the same scales."""
    program = make(key)
    images = sample_images(program)
    export_calibrated(tmp_path / "m.onnx", program, images, kind=kind)
    want, got = forward(program, images), run(tmp_path / "m.onnx", images)
    difference = np.abs(got - want).max()
    assert 1e-4 * want.std() < difference < 0.25 * want.std()
    other = load_onnx(tmp_path / "m.onnx")(images)
    assert np.abs(got - other).max() < 0.1 * want.std()


def test_8_bit_products_take_any_size(run, make, tmp_path):
    program = make("vit", resized=bicubic_antialiased)
    export_calibrated(tmp_path / "m.onnx", program, sample_images(program), kind="int8-qdq")
    for size in program.checked_sizes:
        images = sample_images(program.at(size))
        want = program.runner()(images)
        difference = np.abs(run(tmp_path / "m.onnx", images) - want).max()
        assert 1e-4 * want.std() < difference < 0.5 * want.std()

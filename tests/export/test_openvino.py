"""OpenVINO, where it is installed, gives JAX's numbers for the files that we write."""

import numpy as np
import pytest

from vitswin_jax.export.calibrated import export_calibrated
from vitswin_jax.export.onnx import export_onnx
from vitswin_jax.export.program import sample_images

PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.fixture(name="run", scope="module")
def run_by_openvino():
    openvino = pytest.importorskip("openvino")

    def run(path, images):
        return openvino.Core().compile_model(str(path), "CPU", PRECISE)([images])[0]

    return run


@pytest.mark.parametrize("quantize", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("key", ["vit", "swin", "swinv2"])
def test_it_gives_jaxs_numbers(run, make, forward, tmp_path, key, quantize):
    program = make(key, quantize=quantize)
    export_onnx(tmp_path / "m.onnx", program)
    images = sample_images(program)
    want = forward(program, images)
    for batch in (slice(0, 1), slice(None)):
        got = run(tmp_path / "m.onnx", images[batch])
        assert np.abs(got - want[batch]).max() < 1e-4 * want.std()


def test_8_bit_products_are_near(run, make, forward, tmp_path):
    program = make("vit")
    images = sample_images(program)
    export_calibrated(tmp_path / "m.onnx", program, images)
    want = forward(program, images)
    difference = np.abs(run(tmp_path / "m.onnx", images) - want).max()
    assert 1e-4 * want.std() < difference < 0.25 * want.std()

"""onnxruntime loads and runs each kind of file without a warning."""

import numpy as np
import onnxruntime
import pytest
from kinds import mostly_long

from vitswin_jax.export.calibrated import quantize_products
from vitswin_jax.export.kinds import CALIBRATED
from vitswin_jax.export.onnx import to_onnx
from vitswin_jax.export.program import sample_images
from vitswin_jax.weights.resize import bicubic_antialiased

WARNINGS = 2
KINDS = {
    "float32": {},
    "uint8": {"uint8": True},
    "int8": {"quantize": True},
    "any-size": {"resized": bicubic_antialiased},
}


@pytest.fixture(name="silent")
def silent_run(capfd):
    """Runs a model with warnings shown, and sees none: they are written to file descriptor 2."""

    def silent(model, images):
        capfd.readouterr()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = WARNINGS
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {"images": images})
        assert capfd.readouterr().err == ""

    return silent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", mostly_long(["vit", "pool", "swin", "swinv2"], ["swin"]))
def test_nothing_is_removed_or_warned_of(make, silent, key, kind):
    program = make(key, **KINDS[kind])
    images = sample_images(program)
    silent(to_onnx(program), images)
    if kind == "any-size":
        silent(to_onnx(program), np.zeros((2, 12, 20, 3), np.float32))


@pytest.mark.parametrize("kind", CALIBRATED)
@pytest.mark.parametrize("key", mostly_long(["vit", "swin"], ["vit"]))
def test_nor_in_files_of_8_bit_products(make, silent, key, kind, capfd):
    program = make(key)
    images = sample_images(program)
    capfd.readouterr()
    model = quantize_products(to_onnx(program, deep_products=True), images, CALIBRATED[kind])
    assert capfd.readouterr().err == ""
    silent(model, images)


def test_an_unused_constant_is_warned_of(make, silent):
    """Otherwise these tests could not fail."""
    program = make("vit")
    model = to_onnx(program)
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    model.graph.initializer[-1].name = "unused"
    with pytest.raises(AssertionError, match="Removing initializer 'unused'"):
        silent(model, sample_images(program))

"""ONNX files give JAX's numbers in onnxruntime, on photos and on batches of any size."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.export import onnx as onnx_file
from vitswin_jax.export import program as programs
from vitswin_jax.export.program import sample_images
from vitswin_jax.models.registry import create_model


@pytest.fixture(scope="module")
def export(make, tmp_path_factory):
    """Exports a small model once; returns the file and what the export said."""
    done = {}

    def export(key, **options):
        choice = (key, *options)
        if choice not in done:
            path = tmp_path_factory.mktemp("export") / "model.onnx"
            done[choice] = path, onnx_file.export_onnx(path, make(key, **options))
        return done[choice]

    return export


@pytest.mark.parametrize(
    "key",
    mostly_long(
        ["vit", "pool", "distilled", "rotary", "swin", "swin_mlp", "swinv2"], ["vit", "swin"]
    ),
)
def test_it_gives_jaxs_numbers(make, export, forward, key):
    program = make(key)
    path, difference = export(key)
    images = sample_images(program)
    want, run = forward(program, images), onnx_file.load_onnx(path)
    np.testing.assert_allclose(run(images), want, atol=1e-5)
    np.testing.assert_allclose(run(images[1:2]), want[1:2], atol=1e-5)
    assert 0 < difference.largest < 1e-5
    assert want.std() > 0.1
    # Photos and noise: what it was compared on is no constant.
    assert images.shape == (3, *program.image_shape)
    assert np.ptp(images, (1, 2, 3)).min() > 1


def test_it_takes_pixels_where_asked(make, export, forward):
    program = make("vit", uint8=True)
    run = onnx_file.load_onnx(export("vit", uint8=True)[0])
    pixels = sample_images(program)
    assert pixels.dtype == np.uint8
    images = program.metadata.preprocess.normalize(pixels)
    np.testing.assert_allclose(run(pixels), forward(program, images), atol=1e-5)


def test_the_file_says_what_it_is(export, make):
    path, _ = export("vit")
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [
        ("", onnx_file.OPSET)
    ]
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    assert sides == ["batch", 8, 16, 3]
    said = onnx_file.read_description(path)
    assert said["name"] == "vit"
    assert said["opset"] == onnx_file.OPSET
    assert said["class_names"] == [f"Klasse {i} ä" for i in range(5)]
    assert said["preprocess"]["mean"] == [0.4, 0.5, 0.6]
    assert (
        said["input"] == "images float32 (batch, 8, 16, 3), normalised, (pixel / 255 - mean) / std"
    )
    # Weights keep their names, and are stored once.
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert stored["block_1/mlp/fc1/kernel"] == (16, 64)
    assert stored["block_0/attn/qkv/kernel"] == (16, 48)


def test_what_images_do_not_change_is_computed_once(make):
    """Swin's look-up of biases and Swin V2's network of them are no nodes."""
    for key in ("swin", "swinv2"):
        model = onnx_file.to_onnx(make(key))
        ops = [node.op_type for node in model.graph.node]
        assert not {"Gather", "GatherND", "Sigmoid"} & set(ops)
        assert "Where" not in ops  # which would be of a mask
        assert not [t.name for t in model.graph.initializer if "cpb_mlp" in t.name]


@pytest.mark.parametrize(
    ("key", "norms", "attentions", "gelus"),
    [("vit", 5, 2, {"Gelu": 2}), ("pool", 4, 2, {"FastGelu": 2}), ("swin", 9, 3, {"Gelu": 3})],
)
def test_onnxruntime_has_one_kernel_for_each_function(
    make, tmp_path, key, norms, attentions, gelus
):
    model = onnx_file.to_onnx(make(key))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    ops = Counter(node.op_type for node in nodes)
    assert ops["LayerNormalization"] == norms
    assert ops["Softmax"] == attentions
    assert {op: ops[op] for op in gelus} == gelus
    assert not {"Exp", "Erf", "Tanh", "ReduceMax", "Where"} & set(ops)
    epsilons = {
        attribute.f for node in nodes for attribute in node.attribute if attribute.name == "epsilon"
    }
    assert epsilons == {np.float32(make(key).model.norm_eps)}


def test_int8_is_a_quarter_and_what_it_says(make, export, forward):
    program, plain = make("swin", quantize=True), make("swin")
    path, _ = export("swin", quantize=True)
    images = sample_images(program)
    logits, rounded = forward(plain, images), onnx_file.load_onnx(path)(images)
    np.testing.assert_allclose(rounded, forward(program, images), atol=1e-5)
    assert 1e-4 < np.abs(rounded - logits).max() < 0.1 * logits.std()
    kept = {t.name: t for t in onnx.load(path).graph.initializer}
    for name in program.codes:
        assert kept[f"{name}/int8"].data_type == onnx.TensorProto.INT8
        assert name not in kept
    np.testing.assert_array_equal(  # (inputs, 3, heads, head_dim) as a matrix
        onnx.numpy_helper.to_array(kept["stage_0/block_1/attn/qkv/kernel/int8"]),
        program.codes["stage_0/block_1/attn/qkv/kernel"][0].reshape(8, 24),
    )


def test_an_export_that_differs_is_not_written(make, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "TOLERANCE", 1e-12)
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(UserError, match=r"differs from JAX by .* nothing was written"):
        onnx_file.export_onnx(path, make("vit"))
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_what_onnx_cannot_have_is_said(random_variables, tmp_path):
    model = create_model(
        "swin_moe", img_size=16, embed_dim=8, depths=(2,), num_heads=(2,), window_size=2,
        num_classes=3, pretrained_window_sizes=(0,), moe_stages=(0,), num_experts=2,
    )  # fmt: skip
    program = programs.make_program(model, random_variables(model))
    with pytest.raises(UserError, match=r"ONNX: JAX's .* is not exported; StableHLO"):
        onnx_file.export_onnx(tmp_path / "m.onnx", program)
    assert not list(tmp_path.iterdir())

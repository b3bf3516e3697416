"""Files with open height and width give the numbers of the model that JAX makes for each size."""

import jax
import numpy as np
import onnx
import pytest
from flax.traverse_util import unflatten_dict
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.export import onnx as onnx_file
from vitswin_jax.export import program as programs
from vitswin_jax.export.stablehlo import export_stablehlo, load_stablehlo
from vitswin_jax.models.registry import create_model
from vitswin_jax.weights import resize

METHOD = resize.bicubic_antialiased
VIT_SIZES = ((8, 16), (12, 12), (4, 28))
SWIN_SIZES = ((20, 28), (21, 33), (9, 50))
_VIT = {"img_size": (8, 16), "patch_size": 4, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
_SWIN = {
    "img_size": (20, 28), "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4),
    "window_size": 3, "num_classes": 7,
}  # fmt: skip
MODELS = {
    "vit": ("vit", {**_VIT, "depth": 1}),
    "axial": ("vit", {**_VIT, "depth": 1, "rope_type": "axial", "rope_ref_grid": (3, 5)}),
    "centred": ("vit", {**_VIT, "depth": 1, "rope_type": "centred", "pos_embed": "none"}),
    "mixed": ("vit", {**_VIT, "depth": 1, "rope_type": "mixed"}),
    "sincos": ("vit", {**_VIT, "depth": 1, "pos_embed": "sincos2d"}),
    "every": ("vit", {**_VIT, "depth": 2, "pos_embed_at": "every"}),
    "cropped": ("vit", {**_VIT, "img_size": (9, 18), "depth": 1, "crop_to_patches": True}),
    "stem": ("vit", {**_VIT, "depth": 1, "stem": (4, 8)}),
    "swin": ("swin", {**_SWIN, "depths": (2,), "num_heads": (2,)}),
    "stages": ("swin", _SWIN),
    "rolled": ("swin", {**_SWIN, "pad_before_roll": False}),
    "swinv2": ("swinv2", {**_SWIN, "pretrained_window_sizes": (0, 0)}),
    "swinv2_cr": ("swinv2_cr", _SWIN),
    "swin_mlp": ("swin_mlp", {**_SWIN, "depths": (2,), "num_heads": (2,)}),
}


@pytest.fixture(name="open_program")
def open_program_of(random_variables):
    def open_program(key, **options):
        name, fields = MODELS[key]
        model = create_model(name, **fields)
        return programs.make_program(model, random_variables(model), resized=METHOD, **options)

    return open_program


def in_jax(key, program, images):
    """Logits of the model that is created for the images' size; Swins take any, as they are."""
    name, fields = MODELS[key]
    params, size = dict(program.params), images.shape[1:3]
    if name != "vit":
        model = create_model(name, **fields, attn_impl="auto")
    else:
        old, model = (
            create_model(name, **fields),
            create_model(name, **{**fields, "img_size": size}),
        )
        for table in [path for path in params if path.endswith("pos_embed")]:
            params[table] = resize.resize_pos_embed(
                params[table], old=old.grid, new=model.grid, method=METHOD
            )
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(model.apply)
        return np.asarray(apply({"params": unflatten_dict(params, sep="/")}, images))


@pytest.mark.parametrize("key", mostly_long(list(MODELS), ["swin"]))
def test_it_gives_jaxs_numbers_at_every_size(open_program, tmp_path, key):
    program = open_program(key)
    difference = onnx_file.export_onnx(tmp_path / "m.onnx", program)
    assert difference.is_rounding
    run, rng = onnx_file.load_onnx(tmp_path / "m.onnx"), np.random.default_rng(1)
    logits = []
    for batch, size in enumerate(VIT_SIZES if MODELS[key][0] == "vit" else SWIN_SIZES, 1):
        images = rng.normal(size=(batch, *size, 3)).astype(np.float32)
        want, got = in_jax(key, program, images), run(images)
        assert np.abs(got - want).max() < 1e-4 * want.std()
        logits.append(got[0])
    assert np.ptp(logits, 0).max() > 0.1


def test_the_file_says_which_sizes_it_takes(open_program):
    model = onnx_file.to_onnx(open_program("vit"))
    (images,) = model.graph.input
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    assert sides == ["batch", "height", "width", 3]
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert "float32 (batch, height, width, 3)" in said["input"]
    assert said["image_step"] == "[4, 4]"


@pytest.mark.parametrize("size", [(10, 16), (8, 18), (10, 18), (2, 16)])
def test_sizes_that_patches_do_not_divide_are_errors(open_program, tmp_path, size):
    """As they are in JAX: pixels are not left out in silence, nor rows taken for columns."""
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_file.to_onnx(open_program("vit")).SerializeToString())
    run = onnx_file.load_onnx(path)
    with pytest.raises(Exception, match=r"[Rr]eshape|Conv"):
        run(np.zeros((4, *size, 3), np.float32))


def test_it_is_checked_at_several_sizes(open_program, monkeypatch, tmp_path):
    """A file that is right at the model's own size only is not written."""
    program = open_program("vit")
    assert len({program.size, *program.checked_sizes}) == 3
    monkeypatch.setattr(
        programs.positions, "resized", lambda table, old, new, method: _extended(table, old, new)
    )
    with pytest.raises(UserError, match="differs from JAX"):
        onnx_file.export_onnx(tmp_path / "m.onnx", program)
    assert not list(tmp_path.iterdir())


def _extended(table, old, new):
    """A wrong rule that is right at the table's own size: the last row and column are repeated."""
    import jax.numpy as jnp

    grid = jnp.asarray(table)[0, 1:].reshape(*old, -1)
    rows, columns = (
        jnp.minimum(jnp.arange(after), before - 1) for before, after in zip(old, new, strict=True)
    )
    pick = [
        (axis[:, None] == np.arange(before)[None]).astype(jnp.float32)
        for axis, before in zip((rows, columns), old, strict=True)
    ]
    grid = jnp.einsum("ij,jkc->ikc", pick[0], grid)
    grid = jnp.einsum("ikc,lk->ilc", grid, pick[1])
    return jnp.concatenate([jnp.asarray(table)[:, :1], grid.reshape(1, -1, grid.shape[2])], 1)


@pytest.mark.long
@pytest.mark.parametrize("key", ["vit", "swin"])
def test_stablehlo_takes_them_too(open_program, tmp_path, key):
    program = open_program(key, quantize=True)
    assert export_stablehlo(tmp_path / "m.stablehlo", program).is_rounding
    images = np.random.default_rng(2).normal(size=(2, 12, 20, 3)).astype(np.float32)
    want = in_jax(key, program, images)
    got = load_stablehlo(tmp_path / "m.stablehlo")(images)
    assert np.abs(got - want).max() < 1e-4 * want.std()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vit", {**_VIT, "pos_embed": "learned2d"}, "pos_embed='learned2d' has a table"),
        (
            "vit",
            {**_VIT, "pos_embed": "relative", "pos_embed_at": "every"},
            "pos_embed='relative' has a table for one grid of patches",
        ),
        ("swin", {**_SWIN, "ape": True}, "ape=True adds a table"),
        (
            "swin_moe",
            {**_SWIN, "pretrained_window_sizes": (0, 0), "moe_stages": (), "num_experts": 2},
            "Swin-MoE's experts take a number of tokens",
        ),
        (
            "vit",
            {**_VIT, "img_size": 32, "patch_size": 1, "resnet_layers": (1, 1)},
            r"resnet_layers=\(1, 1\) pads",
        ),
    ],
)
def test_what_has_one_size_is_said(name, fields, message):
    model = create_model(name, **fields)
    with pytest.raises(UserError, match=f"--any-size: {message}.*; leave the option out"):
        programs.make_program(model, {}, resized=METHOD)


@pytest.mark.long
def test_products_of_8_bits_take_any_size(open_program, tmp_path):
    from vitswin_jax.export.calibrated import export_calibrated

    program = open_program("vit")
    images = programs.sample_images(program)
    exact, _ = export_calibrated(tmp_path / "m.onnx", program, images)
    assert exact.is_rounding
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    other = np.random.default_rng(3).normal(size=(2, 12, 20, 3)).astype(np.float32)
    want = in_jax("vit", program, other)
    got = onnx_file.load_onnx(tmp_path / "m.onnx")(other)
    assert 1e-4 * want.std() < np.abs(got - want).max() < 0.5 * want.std()

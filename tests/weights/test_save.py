"""Weights with metadata: what is saved comes back, bit for bit, and misfits are named."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import apply
from drawn import draw
from flax.traverse_util import flatten_dict

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.pretraining import create_pretraining
from vitswin_jax.models.registry import FAMILIES
from vitswin_jax.weights.formats import native as files
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.shapes import parameter_shapes
from vitswin_jax.weights.sources.preprocess import default_preprocess

TINY = {
    "vit": {
        "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "num_classes": 3,
    },
    "swin": {
        "img_size": (16, 24), "patch_size": 2, "embed_dim": 8, "depths": (2, 1),
        "num_heads": (2, 4), "window_size": 4, "num_classes": 3,
    },
}  # fmt: skip


def images_of(model, batch=2):
    size = model.img_size if isinstance(model.img_size, tuple) else (model.img_size,) * 2
    return np.random.default_rng(1).normal(size=(batch, *size, 3)).astype(np.float32)


def logits_of(model, variables, images):
    return apply(model, variables, images)


@pytest.fixture(params=["vit", "swin"])
def family(request):
    return request.param


@pytest.fixture
def saved(tmp_path, family):
    model = vitswin_jax.create_model(family, **TINY[family])
    variables = draw(model)
    path = vitswin_jax.save_pretrained(tmp_path / "a.safetensors", model, variables)
    return model, variables, path


def assert_equal_trees(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def test_round_trip_is_bit_exact(saved):
    model, variables, path = saved
    loaded, got = vitswin_jax.load_pretrained(path)
    assert loaded == model
    assert_equal_trees(got, variables)
    x = images_of(model)
    want = logits_of(model, variables, x)
    assert np.abs(want).max() > 0
    np.testing.assert_array_equal(logits_of(loaded, got, x), want)


def test_scan_layout_in_and_out(saved, family, tmp_path):
    model, variables, path = saved
    scanned, stacked = vitswin_jax.load_pretrained(path, scan=True)
    assert scanned.scan
    x = images_of(model)
    np.testing.assert_allclose(
        logits_of(scanned, stacked, x), logits_of(model, variables, x), atol=1e-5
    )
    again = vitswin_jax.save_pretrained(tmp_path / "b.safetensors", scanned, stacked)
    assert again.read_bytes() == path.read_bytes()


def test_every_field_comes_back(tmp_path):
    fields = TINY["vit"] | {
        "act": "gelu_tanh", "norm_eps": 1e-3, "global_pool": "avg", "class_token": False,
        "pre_logits": 7, "drop_path_rate": 0.25, "dtype": "bfloat16", "mlp_ratio": 2.5,
        "img_size": (8, 16), "init_values": None,
    }  # fmt: skip
    model = vitswin_jax.create_model("vit", **fields, remat="full")
    vitswin_jax.save_pretrained(tmp_path / "a.safetensors", model, draw(model))
    loaded, _ = vitswin_jax.load_pretrained(tmp_path / "a.safetensors")
    assert loaded == vitswin_jax.create_model("vit", **fields)
    assert loaded.dtype == jnp.bfloat16


METADATA = {
    "name": "vit",
    "preprocess": Preprocess(img_size=(16, 16), crop_fraction=1.0, crop_mode="squash"),
    "class_names": ("cat", "dög", "<emu>"),
    "provenance": {"dataset": "digits", "split": "train", "step": 12},
    "metrics": {"test/accuracy": 0.5},
    "train_class_counts": (1, 2, 3),
}


def test_metadata_comes_back(tmp_path):
    model = vitswin_jax.create_model("vit", **TINY["vit"])
    path = tmp_path / "model.safetensors"
    vitswin_jax.save_pretrained(tmp_path, model, draw(model), metadata=METADATA)
    metadata = vitswin_jax.load_metadata(tmp_path)
    for key, value in METADATA.items():
        assert getattr(metadata, key) == value
    assert metadata.fields["embed_dim"] == 16
    assert vitswin_jax.load_metadata(path) == metadata
    vitswin_jax.save_pretrained(tmp_path / "again", model, draw(model), metadata=metadata)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_workdir_stands_for_its_weights(saved, tmp_path):
    _, variables, path = saved
    path.rename(tmp_path / "model.safetensors")
    assert_equal_trees(vitswin_jax.load_pretrained(tmp_path)[1], variables)


def test_variant_names_keep_their_name(tmp_path):
    model = vitswin_jax.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    variables = draw(model)
    vitswin_jax.save_pretrained(
        tmp_path, model, variables, metadata={"name": "vit_tiny_patch16_224"}
    )
    loaded, _ = vitswin_jax.load_pretrained(tmp_path)
    assert loaded == model
    assert vitswin_jax.load_metadata(tmp_path).name == "vit_tiny_patch16_224"


@pytest.mark.parametrize("num_classes", [0, 5])
def test_another_number_of_classes_gives_a_fresh_head(saved, num_classes, caplog):
    _, variables, path = saved
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        loaded, got = vitswin_jax.load_pretrained(path, num_classes=num_classes)
    assert len(caplog.records) == 1
    assert loaded.num_classes == num_classes
    head = got["params"].pop("head", None)
    if num_classes:
        assert {name: leaf.shape[-1] for name, leaf in head.items()} == {"bias": 5, "kernel": 5}
        assert not any(np.any(leaf) for leaf in head.values())
    else:
        assert head is None
    trunk = {name: value for name, value in variables["params"].items() if name != "head"}
    assert_equal_trees(got["params"], trunk)


def test_the_same_number_of_classes_keeps_the_head(saved):
    _, variables, path = saved
    assert_equal_trees(vitswin_jax.load_pretrained(path, num_classes=3)[1], variables)


def rewrite(path, change):
    contents = read_tensors(path)
    tensors = {name: tensor.read() for name, tensor in contents.tensors.items()}
    metadata = dict(contents.metadata)
    change(tensors, metadata)
    files.write_native(path, tensors, metadata=metadata)


def test_all_misfits_are_listed_in_one_line(saved):
    _, _, path = saved

    def change(tensors, _):
        del tensors["norm/bias"], tensors["head/bias"]
        tensors["extra/a"] = tensors["norm/scale"]
        tensors["extra/b"] = tensors["norm/scale"]
        tensors["patch_embed/proj/bias"] = np.zeros(3, np.float32)

    rewrite(path, change)
    with pytest.raises(UserError) as error:
        vitswin_jax.load_pretrained(path)
    for part in (
        str(path),
        "missing head/bias, norm/bias",
        "not in the model extra/a, extra/b",
        "patch_embed/proj/bias has shape (3,), the model's (",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_another_image_size_resizes_positions(tmp_path, caplog):
    """A linear ramp stays one inside the border, and the class token's position is kept."""
    model = vitswin_jax.create_model("vit", **TINY["vit"])
    variables = draw(model)
    ramp = np.broadcast_to(np.arange(16.0).reshape(1, 16, 1) // 4, (1, 16, 16))
    first = np.asarray(variables["params"]["pos_embed"])[:, :1]
    variables["params"]["pos_embed"] = jnp.asarray(np.concatenate([first, ramp], 1), jnp.float32)
    vitswin_jax.save_pretrained(tmp_path, model, variables)
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        resized, got = vitswin_jax.load_pretrained(tmp_path, img_size=(32, 16))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'model.safetensors'}: pos_embed resized from 4x4 to 8x4"
    ]
    assert resized.img_size == (32, 16)
    table = np.asarray(got["params"]["pos_embed"])
    np.testing.assert_array_equal(table[:, :1], first)
    rows = table[0, 1:].reshape(8, 4, 16)
    want = np.broadcast_to(((np.arange(8) + 0.5) / 2 - 0.5).reshape(8, 1, 1), rows.shape)
    np.testing.assert_allclose(rows[3:5], want[3:5], atol=1e-6)
    assert (np.diff(rows[:, 0, 0]) >= 0).all()


def test_name_must_be_of_the_family(saved, family):
    other = {"vit": "swin_tiny_patch4_window7_224", "swin": "vit_tiny_patch16_224"}
    with pytest.raises(UserError, match=f"contains {family}, but "):
        vitswin_jax.load_pretrained(saved[2], other[family])
    assert vitswin_jax.load_pretrained(saved[2], other[{"vit": "swin", "swin": "vit"}[family]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.pop("fields"), "no 'fields'"),
        (lambda t, m: m.update(nmae=1), "unknown 'nmae'"),
        (lambda t, m: m.update(preprocess={"img_size": [16, 16], "meen": 1}), "meen"),
        (lambda t, m: m["fields"].update(embed_dmi=16), "did you mean 'embed_dim'"),
        (lambda t, m: m.update(name="vti"), "did you mean 'vit'"),
    ],
)
def test_metadata_that_does_not_fit_is_one_line(tmp_path, change, message):
    model = vitswin_jax.create_model("vit", **TINY["vit"])
    path = vitswin_jax.save_pretrained(tmp_path, model, draw(model))
    rewrite(path, change)
    with pytest.raises(UserError, match=message):
        vitswin_jax.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "no such file or folder"),
        ("nothing/model.safetensors", "no such file or folder"),
        ("", r"has no model\.safetensors"),
    ],
)
def test_weights_that_are_not_there(tmp_path, path, message):
    for load in (vitswin_jax.load_pretrained, vitswin_jax.load_metadata):
        with pytest.raises(UserError, match=message):
            load(tmp_path / path)


def test_saving_what_does_not_fit_writes_nothing(tmp_path):
    model = vitswin_jax.create_model("vit", **TINY["vit"])
    variables = draw(model)
    with pytest.raises(UserError, match="head/kernel has shape"):
        vitswin_jax.save_pretrained(tmp_path / "a", model.clone(num_classes=4), variables)
    with pytest.raises(UserError, match=r"2 class names were given .* num_classes=3"):
        vitswin_jax.save_pretrained(
            tmp_path / "a", model, variables, metadata={"class_names": ("a", "b")}
        )
    with pytest.raises(UserError, match="format='npz' must be one of native"):
        vitswin_jax.save_pretrained(tmp_path / "a", model, variables, format="npz")
    with pytest.raises(UserError, match="cannot write"):
        vitswin_jax.save_pretrained(tmp_path / "no" / "a", model, variables)
    assert list(tmp_path.iterdir()) == []


def test_preprocess_of_a_file(tmp_path):
    model = vitswin_jax.create_model("vit", **TINY["vit"])
    vitswin_jax.save_pretrained(tmp_path, model, draw(model), metadata=METADATA)
    preprocess = vitswin_jax.make_preprocess(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    batch = preprocess(image)
    np.testing.assert_allclose(batch, image[None].astype(np.float64) / 127.5 - 1, atol=1e-6)
    assert batch.dtype == np.float32
    wide = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    both = preprocess([image, wide])
    assert both.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(both[:1], batch)
    np.testing.assert_array_equal(preprocess(np.stack([image, image])), np.repeat(batch, 2, 0))


@pytest.mark.parametrize(
    ("name", "black", "size"),
    [
        ("vit_tiny_patch16_224", [-1, -1, -1], 224),
        ("swin_base_patch4_window12_384", [-2.117904, -2.035714, -1.804444], 384),
    ],
)
def test_preprocess_of_a_name(name, black, size):
    batch = vitswin_jax.make_preprocess(name)(np.zeros((300, 500, 3), np.uint8))
    assert batch.shape == (1, size, size, 3)
    np.testing.assert_allclose(batch[0, 0, 0], black, atol=1e-6)


def test_every_family_has_a_preprocess():
    for family in FAMILIES:
        assert default_preprocess(vitswin_jax.create_model(family)).interpolation == "bicubic"


def test_preprocess_of_nothing():
    with pytest.raises(UserError, match="did you mean 'vit_tiny_patch16_224'"):
        vitswin_jax.make_preprocess("vit_tiny_patch16_225")
    with pytest.raises(UserError, match="has no tag 'augreg' in timm; its tags are augreg_in21k"):
        vitswin_jax.make_preprocess("vit_tiny_patch16_224.augreg")
    with pytest.raises(UserError, match="no such file"):
        vitswin_jax.make_preprocess("vit_tiny_patch16_224.npz")
    with pytest.raises(UserError, match="no such file"):
        vitswin_jax.make_preprocess("runs/none")


def test_metadata_is_plain_json():
    metadata = Metadata("vit", {"dtype": "float32"}, METADATA["preprocess"])
    data = json.loads(json.dumps(metadata.as_json()))
    assert Metadata.from_json(data, origin="here") == metadata


def test_parameter_shapes_are_those_of_init(family):
    model = vitswin_jax.create_model(family, **TINY[family])
    variables = jax.eval_shape(model.init, jax.random.key(0), images_of(model))
    want = {name: leaf.shape for name, leaf in flatten_dict(variables["params"], sep="/").items()}
    assert parameter_shapes(model) == want
    assert parameter_shapes(model.clone(scan=True)) == want


def test_the_encoder_of_a_pretraining_is_a_model_of_its_own(tmp_path):
    """Its metadata states how it was pre-trained; a file without the decoder has nothing of it."""
    encoder = vitswin_jax.create_model("vit", **{**TINY["vit"], "num_classes": 0})
    whole = create_pretraining(encoder, method="simmim", mask_patch=8)
    path = vitswin_jax.save_pretrained(tmp_path / "whole", whole, draw(whole))
    opened = vitswin_jax.open_pretrained(path)
    assert opened.metadata.pretrain is not None
    again = vitswin_jax.save_pretrained(
        tmp_path / "encoder", opened.model, opened.variables, metadata=opened.metadata
    )
    assert vitswin_jax.load_metadata(again).pretrain is None
    assert_equal_trees(vitswin_jax.load_pretrained(again)[1], opened.variables)

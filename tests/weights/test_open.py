"""Checkpoints of other codes: recognised, adapted, written back; mistakes are one line."""

import functools
import json
import logging
import os
import pickle
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from drawn import draw
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kinds import mostly_long

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats import read as formats
from vitswin_jax.weights.formats.pth_write import write_pth
from vitswin_jax.weights.open import open_pretrained
from vitswin_jax.weights.shapes import parameter_shapes
from vitswin_jax.weights.sources.source import BUFFERS

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 192, "depth": 1, "num_heads": 3,
       "num_classes": 5, "mlp_ratio": 0.5}  # fmt: skip
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4),
        "window_size": 4, "num_classes": 5, "window_clip": "min"}  # fmt: skip
MOE = {"num_experts": 3, "moe_stages": (1,), "pretrained_window_sizes": (3, 0),
       "capacity_over": "batch"}  # fmt: skip
GOOGLE = {"act": "gelu_tanh"}
TOKENS = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
CLIP = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "act": "quick_gelu"}
ONE_HEAD = {"norm_eps": 1e-12, "dist_token": True, "dist_head": False}
SIGLIP = {"class_token": False, "act": "gelu_tanh"}
CASES = {
    "google token": ("google", "vit", VIT | GOOGLE),
    "google pre-logits": ("google", "vit", VIT | GOOGLE | {"pre_logits": 7}),
    "google map": (
        "google", "vit", VIT | GOOGLE | {"class_token": False, "global_pool": "map"},
    ),
    "google sincos": (
        "google", "vit",
        VIT | GOOGLE | {"class_token": False, "global_pool": "avg", "pos_embed": "sincos2d",
                        "img_size": 224, "patch_size": 32},
    ),
    "timm": ("timm", "vit", VIT),
    "timm distilled": ("timm", "vit", VIT | {"dist_token": True}),
    "timm registers": ("timm", "vit", VIT | TOKENS),
    "timm clip": ("timm", "vit", VIT | CLIP),
    "timm swiglu": ("timm", "vit", VIT | TOKENS | {"mlp_ratio": 1.0, "act": "swiglu"}),
    "timm mean": ("timm", "vit", VIT | {"global_pool": "avg", "fc_norm": True}),
    "timm hybrid": ("timm", "vit", VIT | {"img_size": 64, "patch_size": 1,
                                          "resnet_layers": (1, 1)}),
    "timm stem": ("timm", "vit", VIT | {"img_size": 64, "patch_size": 4, "resnet_layers": ()}),
    "google hybrid": (
        "google", "vit",
        VIT | GOOGLE | {"img_size": 64, "patch_size": 1, "resnet_layers": (1, 1),
                        "group_norm_eps": 1e-6, "weight_var_eps": 0.0, "weight_std_eps": 1e-5},
    ),
    "hf vit": ("huggingface", "vit", VIT | {"norm_eps": 1e-12}),
    "hf pooler": ("huggingface", "vit",
                  VIT | {"norm_eps": 1e-12, "num_classes": 0, "pre_logits": 192}),
    "hf deit": ("huggingface", "vit", VIT | {"norm_eps": 1e-12, "dist_token": True}),
    "hf deit classifier": ("huggingface", "vit", VIT | ONE_HEAD),
    "hf deit pooler": ("huggingface", "vit",
                       VIT | ONE_HEAD | {"num_classes": 0, "pre_logits": 192}),
    "hf dinov2": ("huggingface", "vit",
                  VIT | {"global_pool": "token_avg", "init_values": 1e-5}),
    "hf registers": ("huggingface", "vit", VIT | TOKENS | {"global_pool": "token_avg"}),
    "hf swiglu": ("huggingface", "vit",
                  VIT | {"init_values": 1e-5, "mlp_ratio": 1.0, "act": "swiglu"}),
    "hf swiglu registers": ("huggingface", "vit",
                            VIT | TOKENS | {"mlp_ratio": 1.0, "act": "swiglu"}),
    "hf clip": ("huggingface", "vit", VIT | CLIP | {"num_classes": 0}),
    "hf siglip": ("huggingface", "vit", VIT | SIGLIP | {"global_pool": "map", "num_classes": 0}),
    "hf siglip classifier": ("huggingface", "vit", VIT | SIGLIP | {"global_pool": "avg"}),
    "microsoft": ("microsoft", "swin", SWIN),
    "microsoft ape": ("microsoft", "swin", SWIN | {"ape": True, "patch_norm": False}),
    "microsoft v2": ("microsoft", "swinv2", SWIN | {"pretrained_window_sizes": (3, 0)}),
    "microsoft mlp": ("microsoft", "swin_mlp", SWIN | {"window_size": 8}),
    "microsoft moe": ("microsoft", "swin_moe", SWIN | MOE),
    "microsoft moe cosine": ("microsoft", "swin_moe",
                             SWIN | MOE | {"router": "cosine", "mlp_out_bias": True}),
    "timm swin": ("timm", "swin", SWIN | {"window_clip": "per_axis", "pad_before_roll": False,
                                          "window_size": 8}),
    "hf swin": ("huggingface", "swin", SWIN | {"window_size": 8}),
}  # fmt: skip
SUFFIX = {"google": "npz", "timm": "safetensors", "microsoft": "pth", "huggingface": "safetensors"}


@functools.cache
def small(case):
    format, family, fields = CASES[case]
    model = vitswin_jax.create_model(family, **fields)
    return format, model, draw(model)


def unseen(case):
    """Returns what no file of a case's kind shows: the activation of a CLIP."""
    fields = CASES[case][2]
    return {"act": fields["act"]} if "pre_norm" in fields else {}


def saved(case, folder):
    format, model, variables = small(case)
    path = folder / f"a.{SUFFIX[format]}"
    vitswin_jax.save_pretrained(path, model, variables, format=format)
    return path


def assert_equal_trees(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def state_of(path):
    contents = formats.read_tensors(path)
    return {
        name.removeprefix(contents.containers.get(name, "")): tensor.read()
        for name, tensor in contents.tensors.items()
    }


@pytest.mark.parametrize("case", mostly_long(CASES, [*CASES][::2]))
def test_a_file_shows_its_model_without_a_name(case, tmp_path):
    _, model, variables = small(case)
    loaded, got = vitswin_jax.load_pretrained(saved(case, tmp_path), **unseen(case))
    assert loaded == model
    assert_equal_trees(got["params"], variables["params"])


@pytest.mark.parametrize("case", mostly_long(CASES, [*CASES][1::3]))
def test_written_back_it_is_the_same_file(case, tmp_path):
    path = saved(case, tmp_path)
    again = tmp_path / f"b{path.suffix}"
    vitswin_jax.save_pretrained(
        again,
        *vitswin_jax.load_pretrained(path, **unseen(case)),
        format=CASES[case][0],
        metadata=vitswin_jax.load_metadata(path, **unseen(case)),
    )
    a, b = state_of(path), state_of(again)
    assert a.keys() == b.keys()
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_dtype_of_a_file_comes_back(tmp_path, dtype):
    state = {name: array.astype(dtype) for name, array in state_of(saved("timm", tmp_path)).items()}
    write_pth(tmp_path / "half.pth", state, wrapper=None)
    model, variables = vitswin_jax.load_pretrained(tmp_path / "half.pth")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    metadata = vitswin_jax.load_metadata(tmp_path / "half.pth")
    path = tmp_path / "again.safetensors"
    vitswin_jax.save_pretrained(path, model, variables, format="timm", metadata=metadata)
    again = state_of(path)
    assert {array.dtype for array in again.values()} == {np.dtype(dtype)}
    assert all(again[name].tobytes() == state[name].tobytes() for name in state)


def test_scanned_and_prefixed_files_of_big_vision(tmp_path):
    fields = VIT | GOOGLE | {"depth": 3, "class_token": False, "global_pool": "map"}
    model = vitswin_jax.create_model("vit", **fields)
    variables = draw(model)
    vitswin_jax.save_pretrained(tmp_path / "a.npz", model, variables, format="google")
    stacked, parts = {}, {}
    for full_name, array in state_of(tmp_path / "a.npz").items():
        name = full_name.removeprefix("params/")
        block = re.match(r"Transformer/encoderblock_(\d+)/(.*)", name)
        if block:
            parts.setdefault(f"Transformer/encoderblock/{block[2]}", {})[int(block[1])] = array
        else:
            stacked[name] = array
    stacked |= {name: np.stack([rows[i] for i in range(3)]) for name, rows in parts.items()}
    text = {"params/txt/head/bias": np.zeros(3, np.float32), "opt/0/mu": np.zeros(2, np.float32)}
    for prefix, more in (("", {}), ("params/", {}), ("params/img/", text)):
        np.savez(tmp_path / "b.npz", **{prefix + n: a for n, a in stacked.items()}, **more)
        loaded, got = vitswin_jax.load_pretrained(tmp_path / "b.npz")
        assert loaded == model
        assert_equal_trees(got["params"], variables["params"])


def test_linen_numbering_and_flat_group_norms(tmp_path):
    path = saved("google hybrid", tmp_path)
    names = (("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
             ("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0"))  # fmt: skip
    state = {}
    for name, array in state_of(path).items():
        new = functools.reduce(lambda text, change: text.replace(*change), names, name)
        state[new] = array.reshape(-1) if "gn" in name else array
    np.savez(tmp_path / "b.npz", **state)
    assert_equal_trees(
        vitswin_jax.load_pretrained(tmp_path / "b.npz")[1], small("google hybrid")[2]
    )


def test_a_dinov2_position_of_the_class_token_is_added_to_it(tmp_path):
    path = saved("hf registers", tmp_path)
    state = state_of(path)
    name = "dinov2_with_registers.embeddings.position_embeddings"
    state[name] = state[name] + np.float32(1)
    safetensors.numpy.save_file(state, path)
    _, got = vitswin_jax.load_pretrained(path)
    want = small("hf registers")[2]["params"]
    np.testing.assert_allclose(got["params"]["cls_token"], want["cls_token"] + 1)
    np.testing.assert_allclose(got["params"]["pos_embed"], want["pos_embed"] + 1)


def test_original_names_of_deit3_dinov2_and_ddp(tmp_path):
    state = state_of(saved("timm registers", tmp_path))
    state["register_tokens"] = state.pop("reg_token")
    for i in (1, 2):
        state[f"blocks.0.gamma_{i}"] = state.pop(f"blocks.0.ls{i}.gamma")
    state["mask_token"] = np.zeros((1, 192), np.float32)
    state = {f"module.{name}": array for name, array in state.items()}
    write_pth(tmp_path / "a.pth", state, wrapper="model")
    _, got = vitswin_jax.load_pretrained(tmp_path / "a.pth")
    assert_equal_trees(got, small("timm registers")[2])


def test_simmim_encoder(tmp_path, caplog):
    state = {f"encoder.{name}": a for name, a in state_of(saved("microsoft", tmp_path)).items()
             if not name.startswith("head")}  # fmt: skip
    state |= {"encoder.mask_token": np.zeros((1, 1, 8), np.float32),
              "decoder.0.weight": np.zeros((12, 16, 1, 1), np.float32)}  # fmt: skip
    write_pth(tmp_path / "a.pth", state)
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        model, got = vitswin_jax.load_pretrained(tmp_path / "a.pth")
    assert "not used: decoder.0.weight, mask_token" in caplog.text
    assert model.num_classes == 0
    want = {n: v for n, v in small("microsoft")[2]["params"].items() if n != "head"}
    assert_equal_trees(got["params"], want)


def test_experts_that_each_device_wrote_apart_are_put_together(tmp_path):
    """Four devices: each has half of an expert's hidden places."""
    model = vitswin_jax.create_model("swin_moe", **SWIN | MOE | {"num_experts": 2})
    variables = draw(model)
    vitswin_jax.save_pretrained(tmp_path / "a.pth", model, variables, format="microsoft")
    state = state_of(tmp_path / "a.pth")
    experts = {name: a for name, a in state.items() if ".experts." in name}
    shared = {name: a for name, a in state.items() if name not in experts}
    master = tmp_path / "moe.pth.master"
    write_pth(master, shared)
    with pytest.raises(UserError, match=r"moe\.pth\.master: beside it moe\.pth\.rank0 is missing"):
        vitswin_jax.load_pretrained(master)
    for rank in range(4):
        half = {name: np.split(a, 2, axis=1)[rank % 2] for name, a in experts.items()}
        part = {name: a[rank // 2 : rank // 2 + 1] for name, a in half.items()}
        write_pth(tmp_path / f"moe.pth.rank{rank}", part)
    fields = {"pretrained_window_sizes": (3, 0)}
    loaded, got = vitswin_jax.load_pretrained(master, **fields)
    assert loaded == model
    assert_equal_trees(got, variables)
    write_pth(tmp_path / "one.pth", shared | {n: a[:1] for n, a in experts.items()})
    with pytest.raises(UserError, match=r"has 1 of 2 experts; give the path of the \.pth\.master"):
        vitswin_jax.load_pretrained(tmp_path / "one.pth")


def test_a_text_tower_beside_the_image_tower_is_left_out(tmp_path, caplog):
    state = state_of(saved("hf clip", tmp_path))
    names = {"visual_projection.weight": (7, 192), "text_model.final_layer_norm.bias": (3,),
             "logit_scale": ()}  # fmt: skip
    rng = np.random.default_rng(0)
    state |= {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    safetensors.numpy.save_file(state, tmp_path / "clip.safetensors")
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        model, got = vitswin_jax.load_pretrained(tmp_path / "clip.safetensors", act="gelu")
    assert "not used: logit_scale, text_model.final_layer_norm.bias" in caplog.text
    assert model.num_classes == 7
    head = got["params"]["head"]
    np.testing.assert_array_equal(head["kernel"], state["visual_projection.weight"].T)
    assert not np.any(head["bias"])


def test_a_clip_needs_its_activation_named(tmp_path):
    path = saved("timm clip", tmp_path)
    with pytest.raises(UserError, match=r"act=: quick_gelu .* or gelu"):
        vitswin_jax.load_pretrained(path)
    model, _ = vitswin_jax.load_pretrained(path, "vit_base_patch16_clip_quickgelu_224")
    assert (model.act, model.embed_dim) == ("quick_gelu", 192)
    classifier = state_of(saved("hf clip", tmp_path))
    classifier["classifier.weight"] = np.zeros((2, 192), np.float32)
    safetensors.numpy.save_file(classifier, tmp_path / "classifier.safetensors")
    with pytest.raises(UserError, match=r"classifier\.safetensors: CLIPForImageClassification"):
        vitswin_jax.load_pretrained(tmp_path / "classifier.safetensors")


def test_names_and_fields_supply_what_a_file_does_not_show(tmp_path):
    model = vitswin_jax.create_model("swinv2", **SWIN | {"pretrained_window_sizes": (0, 0)})
    path = tmp_path / "a.safetensors"
    variables = draw(model)
    vitswin_jax.save_pretrained(path, model, variables, format="timm")
    with pytest.raises(UserError, match=r"window_size.*8 at 256, 12 at 192"):
        vitswin_jax.load_pretrained(path)
    loaded, got = vitswin_jax.load_pretrained(path, window_size=4, img_size=32)
    assert (loaded.window_size, loaded.img_size) == (4, 32)
    assert_equal_trees(got, variables)
    named, _ = vitswin_jax.load_pretrained(path, "swinv2_tiny_window16_256")
    assert (named.window_size, named.img_size, named.embed_dim) == (16, 256, 8)

    odd = vitswin_jax.create_model("vit", **VIT | {"embed_dim": 48, "num_heads": 4})
    vitswin_jax.save_pretrained(path, odd, draw(odd), format="timm")
    with pytest.raises(UserError, match=r"num_heads=: 1, 2, 3, 4, 6"):
        vitswin_jax.load_pretrained(path)
    assert vitswin_jax.load_pretrained(path, num_heads=4)[0].num_heads == 4


@pytest.mark.parametrize("case", ["timm", "timm registers", "hf vit", "google token"])
def test_a_grid_that_is_no_square_is_the_one_that_is_asked_for(case, tmp_path):
    format, family, fields = CASES[case]
    model = vitswin_jax.create_model(family, **fields | {"img_size": (8, 24)})
    path = tmp_path / f"a.{SUFFIX[format]}"
    variables = draw(model)
    vitswin_jax.save_pretrained(path, model, variables, format=format)
    with pytest.raises(UserError, match=r"give a name or img_size=, of one of the grids .*2x6"):
        vitswin_jax.load_pretrained(path)
    loaded, got = vitswin_jax.load_pretrained(path, img_size=(8, 24))
    assert loaded == model
    assert_equal_trees(got["params"], variables["params"])


@pytest.mark.parametrize(("case", "img_size"), [("hf registers", 12), ("hf vit", (12, 20))])
def test_positions_are_counted_as_their_code_has_them(case, img_size, tmp_path):
    """Nine positions without five tokens', and fifteen with one, would be squares too."""
    format, family, fields = CASES[case]
    model = vitswin_jax.create_model(family, **fields | {"img_size": img_size})
    path = tmp_path / "a.safetensors"
    vitswin_jax.save_pretrained(path, model, draw(model), format=format)
    loaded, _ = vitswin_jax.load_pretrained(path, img_size=img_size)
    assert loaded == model


def test_the_file_wins_over_the_name(tmp_path):
    loaded, _ = vitswin_jax.load_pretrained(saved("google token", tmp_path), "vit_base_patch16_224")
    assert (loaded.embed_dim, loaded.num_heads, loaded.act) == (192, 3, "gelu_tanh")
    with pytest.raises(
        UserError, match=r"a\.npz: contains Google .* vit, but .* is of the family swin"
    ):
        vitswin_jax.load_pretrained(tmp_path / "a.npz", "swin_tiny_patch4_window7_224")
    loaded, _ = vitswin_jax.load_pretrained(tmp_path / "a.npz", act="gelu", global_pool="avg")
    assert (loaded.act, loaded.global_pool) == ("gelu", "avg")


def test_windows_of_another_size_and_another_head(tmp_path, caplog):
    path = saved("microsoft ape", tmp_path)
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        model, got = vitswin_jax.load_pretrained(path, window_size=6, img_size=48, num_classes=3)
    assert [record.message.removeprefix(f"{path}: ") for record in caplog.records] == [
        "5 classes to 3: the head is fresh (zero)",
        "absolute_pos_embed resized from 16x16 to 24x24",
        "4 bias tables resized from window 4x4 to 6x6",
    ]
    params = got["params"]
    assert params["stage_0"]["block_0"]["attn"]["relative_position_bias_table"].shape == (121, 2)
    assert not np.any(params["head"]["kernel"])
    assert (model.window_size, model.img_size) == (6, 48)


def test_input_channels(tmp_path):
    path = saved("timm", tmp_path)
    kernel = np.asarray(small("timm")[2]["params"]["patch_embed"]["proj"]["kernel"])
    _, grey = vitswin_jax.load_pretrained(path, in_chans=1)
    got = grey["params"]["patch_embed"]["proj"]["kernel"]
    np.testing.assert_allclose(got[:, :, 0], kernel.sum(2), atol=1e-6)


@pytest.mark.parametrize(("channels", "how"), [(1, "their sum"), (5, "repeated, times 3/5")])
def test_other_channels_are_logged_and_stay_in_files_of_both_kinds(tmp_path, caplog, channels, how):
    kernel = np.asarray(small("timm")[2]["params"]["patch_embed"]["proj"]["kernel"])
    with caplog.at_level(logging.INFO):
        opened = open_pretrained(saved("timm", tmp_path), in_chans=channels)
        model, variables, preprocess = opened.model, opened.variables, opened.preprocess
    assert f"from 3 input channels to {channels}: {how}" in caplog.text
    assert f"the average of 3 channels, for each of {channels}" in caplog.text
    got = variables["params"]["patch_embed"]["proj"]["kernel"]
    # timm's adapt_input_conv: the sum, or red, green, blue in turns times 3 / channels.
    whole = np.concatenate([kernel] * 2, 2)[:, :, :channels] * 3 / channels
    expected = kernel.sum(2, keepdims=True) if channels == 1 else whole
    np.testing.assert_allclose(got, expected, atol=1e-6)
    for name, kind in (("own.safetensors", "native"), ("folder", "timm")):
        vitswin_jax.save_pretrained(
            tmp_path / name, model, variables, format=kind, metadata=opened.metadata
        )
        again = open_pretrained(tmp_path / name)
        assert again.model.in_chans == channels
        assert again.preprocess == preprocess
        np.testing.assert_array_equal(
            again.variables["params"]["patch_embed"]["proj"]["kernel"], got
        )
    config = json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))
    assert config["pretrained_cfg"]["input_size"] == [channels, 16, 16]
    assert config["model_args"]["in_chans"] == channels
    assert len(config["pretrained_cfg"]["mean"]) == channels


def test_microsofts_22k_head_is_mapped_to_1k(tmp_path):
    model = vitswin_jax.create_model("swin", **SWIN | {"num_classes": 21841})
    variables = draw(model)
    vitswin_jax.save_pretrained(tmp_path / "a.pth", model, variables, format="microsoft")
    _, got = vitswin_jax.load_pretrained(tmp_path / "a.pth", num_classes=1000)
    want = variables["params"]["head"]["kernel"]
    # The first lines of the official map22kto1k.txt.
    np.testing.assert_array_equal(got["params"]["head"]["kernel"][:, :2], want[:, [359, 368]])


def test_metadata_of_a_foreign_file(tmp_path):
    metadata = vitswin_jax.load_metadata(saved("google token", tmp_path))
    assert metadata.preprocess.mean == (0.5, 0.5, 0.5)
    assert metadata.provenance["source"] == "Google (vision_transformer)"
    assert json.loads(json.dumps(metadata.as_json()))
    (tmp_path / "hub").mkdir()
    path = saved("timm swin", tmp_path).rename(tmp_path / "hub" / "model.safetensors")
    assert vitswin_jax.load_metadata(tmp_path / "hub").preprocess.mean[0] == 0.485
    assert vitswin_jax.make_preprocess(path)(np.zeros((9, 9, 3), np.uint8)).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "fields", "want"),
    [
        (None, "deit3_small_patch16_224", "deit3_small_patch16_224"),
        (None, "deit_small_distilled_patch16_224", "deit_small_distilled_patch16_224"),
        (None, "deit_small_patch16_224", "vit_small_patch16_224"),  # the files are alike
        ("deit_small_patch16_224.fb_in1k", "deit_small_patch16_224", "deit_small_patch16_224"),
        ("deit_base_patch16_224", "vit_small_patch16_224", "vit_small_patch16_224"),
    ],
)
def test_a_file_is_called_by_what_it_shows_and_then_by_the_name(tmp_path, name, fields, want):
    model = vitswin_jax.create_model(fields)
    flat = {key: np.zeros(shape, np.float32) for key, shape in parameter_shapes(model).items()}
    variables = {"params": unflatten_dict(flat, sep="/")}
    path = vitswin_jax.save_pretrained(tmp_path / "a.pth", model, variables, format="timm")
    assert vitswin_jax.load_metadata(path, name).name == want


@pytest.mark.parametrize(
    ("format", "case", "message"),
    [
        (
            "microsoft",
            "timm",
            "microsoft cannot hold vit; use google, huggingface, timm, torchvision",
        ),
        ("google", "timm distilled", "google cannot hold vit with dist_token=True"),
        ("huggingface", "timm clip", "a.bin: CLIP's projection has no bias"),
        ("huggingface", "timm stem", "huggingface cannot hold vit with resnet_layers"),
        ("timm", "google pre-logits", "timm cannot hold vit with pre_logits=7"),
        ("timm", "microsoft ape", "timm cannot hold swin with ape=True"),
        ("torch", "timm", "format='torch' must be one of native, "),
        ("google", "timm", "google files end in .npz, not '.bin'"),
    ],
)
def test_what_a_format_cannot_have_is_one_line(tmp_path, format, case, message):
    _, model, variables = small(case)
    with pytest.raises(UserError, match=message):
        vitswin_jax.save_pretrained(tmp_path / "a.bin", model, variables, format=format)
    assert list(tmp_path.iterdir()) == []


def test_other_numerics_over_there_are_said(tmp_path, caplog):
    _, model, variables = small("timm")
    vitswin_jax.save_pretrained(tmp_path / "a.npz", model, variables, format="google")
    assert "own code computes with act='gelu_tanh' (here 'gelu')" in caplog.text


def test_another_familys_file_is_one_line(tmp_path):
    for key, says in (
        ("stem.0.weight", r"a\.pth: is from no known source .*stem\.0"),
        ("layer1.0.conv1.weight", r"a\.pth: contains a ResNet with BatchNorm"),
    ):
        write_pth(tmp_path / "a.pth", {key: np.zeros((2, 2), np.float32)})
        with pytest.raises(UserError, match=says):
            vitswin_jax.load_pretrained(tmp_path / "a.pth")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_code_does_not(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"model": Evil(tmp_path / "trace")}))
    with pytest.raises(UserError, match=r"a\.pth: has no tensor, but a whole pickled object"):
        vitswin_jax.load_pretrained(tmp_path / "a.pth")
    assert not (tmp_path / "trace").exists()


MUTATIONS = {
    "drop": lambda state, name: state.pop(name),
    "rename": lambda state, name: state.update({f"{name}x": state.pop(name)}),
    "flatten": lambda state, name: state.update({name: state[name].reshape(-1)}),
    "grow": lambda state, name: state.update({name: np.repeat(np.atleast_1d(state[name]), 2, -1)}),
    "empty": lambda state, name: state.update({name: np.atleast_1d(state[name])[:0]}),
    "integers": lambda state, name: state.update({name: state[name].astype(np.int32)}),
    "scalar": lambda state, name: state.update({name: np.zeros((), np.float32)}),
    "add": lambda state, name: state.update({f"extra.{name}": state[name]}),
}


def write_state(path, state):
    """Writes named arrays as a file of the kind that its suffix says, and returns its path."""
    if path.suffix == ".npz":
        np.savez(path, **state)
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in state.items()}, path)
    else:
        write_pth(path, state)
    return path


@pytest.mark.parametrize(
    ("case", "table"),
    [("google pre-logits", "Transformer/posembed_input/pos_embedding"), ("timm", "pos_embed")],
)
def test_a_class_token_without_positions_is_no_sincos_model(tmp_path, case, table):
    state = state_of(saved(case, tmp_path))
    del state[table]
    path = write_state(tmp_path / f"b.{SUFFIX[CASES[case][0]]}", state)
    with pytest.raises(UserError, match="has no position embeddings"):
        vitswin_jax.load_pretrained(path)
    assert vitswin_jax.load_pretrained(path, pos_embed="none")[0].pos_embed == "none"


@pytest.mark.parametrize(
    ("case", "lost"),
    [
        ("google pre-logits", "MultiHeadDotProductAttention_1/out/bias"),
        ("google pre-logits", "Dense_0/bias"),
        ("google pre-logits", "embedding/bias"),
        ("timm registers", "attn.proj.bias"),
        ("timm registers", "patch_embed.proj.bias"),
        ("hf dinov2", "attention.output.dense.bias"),
    ],
)
def test_a_bias_that_its_code_always_has_is_missed(tmp_path, case, lost):
    state = state_of(saved(case, tmp_path))
    names = [name for name in state if name.endswith(lost)]
    assert names
    for name in names:
        del state[name]
    path = write_state(tmp_path / f"b.{SUFFIX[CASES[case][0]]}", state)
    with pytest.raises(UserError, match=f"{lost} is missing"):
        vitswin_jax.load_pretrained(path)


@pytest.mark.parametrize(
    "case",
    ["google pre-logits", "timm registers", pytest.param("microsoft", marks=pytest.mark.long)],
)
@settings(max_examples=15, deadline=None, phases=[Phase.generate])  # shrinking would take long
@given(data=st.data())
def test_a_bad_checkpoint_is_one_line_or_right(tmp_path_factory, case, data):
    folder = tmp_path_factory.mktemp("mutants")
    format = CASES[case][0]
    state = state_of(saved(case, folder))
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(state)))
        MUTATIONS[data.draw(st.sampled_from(sorted(MUTATIONS)))](state, name)
    path = write_state(folder / f"b.{SUFFIX[format]}", state)
    try:
        loaded, got = vitswin_jax.load_pretrained(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return
    again = folder / f"c.{SUFFIX[format]}"
    metadata = vitswin_jax.load_metadata(path)
    vitswin_jax.save_pretrained(again, loaded, got, format=format, metadata=metadata)
    written = state_of(again)
    for name, array in state.items():
        if not name.endswith(BUFFERS):
            np.testing.assert_array_equal(written[name], array)

"""Facts about a model from its tensors, the caller, the configuration and the name, in this order.

The files are of small models whose fields are known, and of timm's own Swins with other windows.
"""

import json
import logging
import pickle
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from applied import apply
from drawn import draw
from kinds import mostly_long
from parity import GOLDENS

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.pth_write import write_pth

SMALL = {"img_size": 32, "depth": 1, "embed_dim": 192, "num_heads": 3, "num_classes": 5}


def write(folder, format="timm", **fields):
    """Writes a small ViT's tensors, and returns its model, variables and file."""
    model = vitswin_jax.create_model("vit", **SMALL | fields)
    variables = draw(model)
    path = folder / "model.safetensors"
    vitswin_jax.save_pretrained(path, model, variables, format=format)
    return model, variables, path


def _pair(size):
    return (size, size) if isinstance(size, int) else size


def describe(folder, architecture="vit_tiny_patch16_224", **args):
    config = {"architecture": architecture, "model_args": args, "pretrained_cfg": {"tag": "x"}}
    (folder / "config.json").write_text(json.dumps(config))


def same_logits(ours, theirs, size):
    images = np.random.default_rng(1).normal(size=(2, *_pair(size), 3)).astype(np.float32)
    a, b = (apply(model, variables, images) for model, variables in (ours, theirs))
    return float(np.abs(a - b).max()) < 1e-5


def test_each_fact_is_taken_from_the_first_that_has_it(tmp_path):
    """Heads, which no tensor shows: the caller's, the configuration's, the name's, the width's."""
    _, _, path = write(tmp_path)
    load = vitswin_jax.load_pretrained
    assert load(path)[0].num_heads == 3
    assert load(path, "vit_tiny_patch16_224")[0].num_heads == 3
    describe(tmp_path, num_heads=6)
    assert load(path)[0].num_heads == 6
    assert load(path, "vit_tiny_patch16_224")[0].num_heads == 6
    assert load(path, num_heads=2)[0].num_heads == 2
    with pytest.raises(UserError, match="embed_dim=768 was given, and the tensors show 192"):
        load(path, embed_dim=768)


CLIP = {"pre_norm": True, "patch_bias": False}


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "vitswin_jax")
    return caplog


def named(path, name):
    """Gives a file a name, and returns its new path."""
    return path.rename(path.with_name(name))


@pytest.mark.parametrize("suffix", [".safetensors", ".openai.safetensors"])
def test_the_name_of_a_file_says_what_no_tensor_shows(tmp_path, logged, suffix):
    """The activation and the norms' epsilon of OpenAI's CLIP."""
    model, variables, path = write(tmp_path, act="quick_gelu", norm_eps=1e-5, **CLIP)
    path = named(path, "vit_base_patch32_clip_quickgelu_224" + suffix)
    assert same_logits((model, variables), vitswin_jax.load_pretrained(path), 32)
    (line,) = [line for line in logged.messages if "no tensor" in line]
    assert line.endswith(f"that of {path.stem}, by its name")
    with pytest.raises(UserError, match="does not show which activation"):
        vitswin_jax.load_pretrained(named(path, "mine.safetensors"))


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "hiera_base_224", "vit"]
)
def test_another_name_of_a_file_changes_nothing(tmp_path, logged, name):
    """Of another family, of other parts, of a model of other libraries, of a family."""
    model, variables, path = write(tmp_path)
    path = named(path, name + ".safetensors")
    assert same_logits((model, variables), vitswin_jax.load_pretrained(path), 32)
    said = [line for line in logged.messages if "is not what its name says" in line]
    assert len(said) == ("_patch" in name)


def test_all_else_comes_before_the_name_of_a_file(tmp_path):
    _, _, path = write(tmp_path, **CLIP)
    path = named(path, "vit_base_patch32_clip_quickgelu_224.safetensors")
    load = vitswin_jax.load_pretrained
    for given in (load(path, "vit_base_patch32_clip_224"), load(path, act="gelu")):
        assert given[0].act == "gelu"
    describe(tmp_path, "vit_base_patch32_clip_224")
    assert load(path)[0].act == load(tmp_path / path.name)[0].act == "quick_gelu"  # of a model.*
    assert load(named(path, "model.safetensors"))[0].act == "gelu"


STATED = [
    ({"num_heads": 6}, {"num_heads": 6}),
    ({"act": "quick_gelu"}, {"act_layer": "quick_gelu"}),
    ({"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}),
    ({"fc_norm": True}, {"global_pool": "token", "fc_norm": True}),
    ({"img_size": (64, 96)}, {"img_size": [64, 96]}),  # 4 x 6 + 1 = 5 x 5
    ({"pre_norm": True}, {"pre_norm": True}),
    ({"class_token": False, "global_pool": "avg", "qkv_bias": False},
     {"class_token": False, "global_pool": "avg", "qkv_bias": False}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "args"), mostly_long(STATED, STATED[::3]))
def test_a_configuration_states_what_no_tensor_shows(tmp_path, fields, args):
    model, variables, path = write(tmp_path, **fields)
    describe(tmp_path, **{"img_size": 32, "depth": 1} | args)
    for place in (path, tmp_path):
        assert same_logits((model, variables), vitswin_jax.load_pretrained(place), model.img_size)


def test_an_architecture_of_other_parts_than_the_tensors_is_refused(tmp_path):
    """Its norms, which no tensor shows, are not those of the model in the file."""
    _, _, path = write(tmp_path)
    config = {"architecture": "vit_base_patch16_rpn_224", "pretrained_cfg": {"tag": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"'vit_base_patch16_rpn_224'.* class_token=True, not Fal"):
        vitswin_jax.load_pretrained(path)
    (tmp_path / "config.json").unlink()
    assert vitswin_jax.load_pretrained(path, "vit_base_patch16_rpn_224")[0].class_token


CONTRADICTING = [
    ({"embed_dim": 384}, "states embed_dim=384, and the tensors show 192"),
    ({"depth": 12}, "states depth=12, and the tensors show 1"),
    ({"img_size": 64}, "states img_size=64, and the tensors show 32"),
    ({"num_classes": 7}, "states num_classes=7, and the tensors show 5"),
    ({"qkv_bias": False}, "states qkv_bias=False, and the tensors show True"),
    ({"init_values": 1e-5}, "states init_values=1e-05, and the tensors show None"),
    ({"global_pool": "map"}, "states global_pool='map', and the tensors show 'token'"),
]


@pytest.mark.parametrize(("args", "says"), mostly_long(CONTRADICTING, CONTRADICTING[::3]))
def test_a_configuration_that_contradicts_the_tensors_raises(tmp_path, args, says):
    _, _, path = write(tmp_path)
    describe(tmp_path, **args)
    with pytest.raises(UserError) as raised:
        vitswin_jax.load_pretrained(path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sizes_and_classes_that_the_caller_gives_resize(tmp_path):
    _, _, path = write(tmp_path)
    describe(tmp_path, img_size=32, depth=1)
    model, variables = vitswin_jax.load_pretrained(path, img_size=64, num_classes=2, in_chans=1)
    assert (model.img_size, model.num_classes, model.in_chans) == (64, 2, 1)
    assert variables["params"]["pos_embed"].shape == (1, 17, 192)


def test_a_name_that_contradicts_the_tensors_gives_way_in_one_line(tmp_path, caplog):
    _, _, path = write(tmp_path)
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        model, _ = vitswin_jax.load_pretrained(path, "vit_small_patch32_224")
    assert (model.embed_dim, model.patch_size, model.num_heads) == (192, 16, 3)
    (line,) = (line for line in caplog.messages if "differs from" in line)
    assert "embed_dim=192, not 384" in line
    assert "patch_size=16, not 32" in line


def test_a_configuration_of_other_tensors_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 192}))
    with pytest.raises(UserError, match="model_type is 'vit', and the tensors are those of timm"):
        vitswin_jax.load_pretrained(tmp_path)


def test_labels_of_another_head_are_refused(tmp_path):
    write(tmp_path, "huggingface", norm_eps=1e-12)
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"],
              "hidden_size": 192, "num_attention_heads": 3,
              "id2label": {"0": "cat", "1": "dog"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="has 2 names of classes, and the tensors show num_classes=5"
    ):
        vitswin_jax.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"init_values": 1e-5}, "gamma_1"),
        ({"class_token": False, "global_pool": "avg", "qkv_bias": False}, "vit_.*_rpn_"),
        ({"pre_norm": True, "global_pool": "map"}, "vit_pe_core_"),
    ],
)
def test_look_alikes_are_refused_unless_something_says_what_they_are(tmp_path, fields, says):
    _, _, path = write(tmp_path, **fields)
    if "init_values" in fields:  # as EVA's code calls LayerScale
        state = safetensors.numpy.load_file(path)
        for i in (1, 2):
            state[f"blocks.0.gamma_{i}"] = state.pop(f"blocks.0.ls{i}.gamma")
        safetensors.numpy.save_file(state, path)
    with pytest.raises(UserError, match=f"may be another architecture's .*{says}"):
        vitswin_jax.load_pretrained(path)
    vitswin_jax.load_pretrained(path, "vit_tiny_patch16_224")


def test_layer_scale_tells_timms_gap_models_from_its_look_alikes(tmp_path):
    """vit_medium_patch16_gap_256 has LayerScale; norms after the branches have none."""
    gap = {"class_token": False, "global_pool": "avg", "qkv_bias": False, "init_values": 1e-6}
    model, variables, path = write(tmp_path, fc_norm=True, **gap)
    assert same_logits((model, variables), vitswin_jax.load_pretrained(path), 32)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fields", "act"),
    [
        ({"embed_dim": 1152, "num_heads": 16, "mlp_ratio": 4304 / 1152}, "gelu_tanh"),
        ({"embed_dim": 1152, "num_heads": 16, "mlp_ratio": 4304 / 1152, "patch_size": 14,
          "img_size": 28}, "gelu"),
        ({"embed_dim": 1024, "num_heads": 16}, None),  # gelu to 384 pixels, gelu_tanh at 512
        ({}, "gelu"),
    ],
)  # fmt: skip
def test_activations_of_unnamed_siglips_are_those_of_all_published_ones(tmp_path, fields, act):
    pooled = {"class_token": False, "global_pool": "map", "num_classes": 0}
    model = vitswin_jax.create_model("vit", **SMALL | pooled | fields)
    images = np.zeros((1, *_pair(model.img_size), 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    path = tmp_path / "model.safetensors"
    vitswin_jax.save_pretrained(path, model, zeros, format="timm")

    def act_of(*name, **fields):
        return vitswin_jax.open_pretrained(path, *name, **fields).model.act

    if act is None:
        with pytest.raises(UserError, match="give a name or act=: gelu or gelu_tanh"):
            act_of()
        assert act_of("vit_large_patch16_siglip_512") == "gelu_tanh"
        assert act_of(act="gelu") == "gelu"
    else:
        assert act_of() == act


SWINS = {  # case -> what timm's configuration has, what the caller may give
    "oblong": {"img_size": (28, 14), "window_size": 7},
    "window_pair": {"img_size": 16, "window_size": (2, 4)},
    "window_pair_oblong": {"img_size": (20, 12), "window_size": (4, 2)},
    "always_partition": {"img_size": 16, "window_size": 3, "always_partition": True},
}


@pytest.mark.parametrize("case", mostly_long(SWINS, ["oblong"]))
@pytest.mark.parametrize("by", ["configuration", "caller"])
def test_swins_with_windows_that_are_no_squares(tmp_path, case, by):
    with np.load(GOLDENS.parent / "models" / "timm_swin.npz") as file:
        golden = {n.partition("/")[2]: a for n, a in file.items() if n.startswith(f"{case}/")}
    state = {n.removeprefix("weights/"): a.astype(np.float32)
             for n, a in golden.items() if n.startswith("weights/")}  # fmt: skip
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(state, path)
    args = dict(SWINS[case])
    if by == "configuration":
        describe(tmp_path, "swin_tiny_patch4_window7_224", **args, patch_size=2, depths=[2, 2],
                 num_heads=[1, 2], embed_dim=8, num_classes=3)  # fmt: skip
        args = {}
    elif args.pop("always_partition", False):
        args["window_clip"] = "never"
    model, variables = vitswin_jax.load_pretrained(path, **args)
    with jax.default_matmul_precision("highest"):
        got = apply(model, variables, golden["images"])
    want = golden["logits"]
    assert np.abs(got - want).max() / want.std() < 2e-5


def test_a_deit_of_transformers_sees_imagenets_statistics(tmp_path):
    """Its tensors are a ViT's; the name of the base model is all that tells them apart."""
    _, _, path = write(tmp_path, "huggingface", norm_eps=1e-12)
    assert vitswin_jax.load_metadata(path).preprocess.mean[0] == 0.5
    state = safetensors.numpy.load_file(path)
    state = {name.replace("vit.", "deit.", 1): array for name, array in state.items()}
    safetensors.numpy.save_file(state, path)
    assert vitswin_jax.load_metadata(path).preprocess.mean[0] == 0.485
    config = {"model_type": "deit", "hidden_size": 192, "num_attention_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vitswin_jax.load_pretrained(path)[0].num_heads == 3


@pytest.mark.parametrize(
    ("arch", "heads"), [("vit_tiny_patch16_224", 3), ("my_vit", 3), ("vit_base_patch16_gap_224", 3)]
)
def test_a_training_script_may_state_the_architecture(tmp_path, arch, heads):
    _, _, path = write(tmp_path)
    assert vitswin_jax.load_pretrained(stating(path, arch))[0].num_heads == heads


def test_another_architecture_that_a_training_script_states_is_refused(tmp_path):
    _, _, path = write(tmp_path)
    with pytest.raises(UserError, match="states as its architecture: 'vit_base_patch16_xp_224'"):
        vitswin_jax.load_pretrained(stating(path, "vit_base_patch16_xp_224"))


def test_a_vit_small_may_be_moco_v3s_whose_heads_no_key_shows(tmp_path):
    _, _, path = write(tmp_path)
    stated = stating(path, "vit_small")
    with pytest.raises(UserError, match="has 12 heads in MoCo v3 and 6 elsewhere"):
        vitswin_jax.load_pretrained(stated)
    assert vitswin_jax.load_pretrained(stated, num_heads=6)[0].num_heads == 6


def stating(path, arch):
    """Returns a training script's file of the same tensors: {"arch": ..., "state_dict": ...}."""
    state = safetensors.numpy.load_file(path)
    text = pickle.dumps("arch", 2)[2:-1] + pickle.dumps(arch, 2)[2:-1] + pickle.SETITEM
    write_pth(path.with_suffix(".pth"), state, wrapper="state_dict")
    with zipfile.ZipFile(path.with_suffix(".pth")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path.with_name("stating.pth"), "w") as archive:
        for name, data in members.items():
            wrapped = data[:-1] + text + pickle.STOP if name.endswith("data.pkl") else data
            archive.writestr(name, wrapped)
    return path.with_name("stating.pth")

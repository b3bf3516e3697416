"""The model in a file: found under any keys and prefixes, and the right one of several copies."""

import logging
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from applied import apply
from drawn import draw
from flax.traverse_util import flatten_dict, unflatten_dict
from kinds import mostly_long

import vitswin_jax
from vitswin_jax.cli import main
from vitswin_jax.core.types import UserError
from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.pth_write import tensor_pickle
from vitswin_jax.weights.formats.read import read_tensors
from vitswin_jax.weights.sources.rules import write_rules
from vitswin_jax.weights.sources.source import HALF, IMAGENET
from vitswin_jax.weights.sources.towers import OPEN_CLIP_RULES

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 192, "depth": 2, "num_heads": 3,
       "mlp_ratio": 0.5, "num_classes": 5}  # fmt: skip
SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4),
        "window_size": 4, "num_classes": 5}  # fmt: skip
DINOV2 = VIT | {"init_values": 1e-5, "num_classes": 0}
CLIP = VIT | {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "act": "gelu"}
MODELS = {
    "timm": ("vit", "timm", VIT),
    "dinov2": ("vit", "timm", DINOV2),
    "google": ("vit", "google", VIT | {"act": "gelu_tanh"}),
    "hf vit": ("vit", "huggingface", VIT | {"norm_eps": 1e-12}),
    "hf clip": ("vit", "huggingface", CLIP | {"num_classes": 0}),
    "timm swin": ("swin", "timm", SWIN | {"pad_before_roll": False}),
    "microsoft": ("swin", "microsoft", SWIN),
    "hf swin": ("swin", "huggingface", SWIN),
}  # fmt: skip


def make(kind, folder, seed=0):
    """Returns a model's state dict by its code's names, and the logits of 2 images."""
    family, format, fields = MODELS[kind]
    model = vitswin_jax.create_model(family, **fields)
    variables = draw(model, seed, scale=0.1)
    suffix = {"google": "npz", "microsoft": "pth"}.get(format, "safetensors")
    path = folder / f"original{seed}.{suffix}"
    vitswin_jax.save_pretrained(path, model, variables, format=format)
    contents = read_tensors(path)
    state = {
        name.removeprefix(contents.containers.get(name, "")): tensor.read()
        for name, tensor in contents.tensors.items()
    }
    return state, logits(model, variables)


def logits(model, variables):
    images = np.random.default_rng(9).normal(size=(2, model.img_size, model.img_size, 3))
    return np.asarray(apply(model, variables, images.astype(np.float32)))


def without_head(state):
    """Returns a state dict as pre-training without labels leaves it."""
    return {name: array for name, array in state.items() if not name.startswith("head.")}


def prefix(text, state):
    """Returns a state dict with a text before each name."""
    return {text + name: array for name, array in state.items()}


def write_tree(path, tree):
    """Writes nested dicts of arrays and plain values as torch.save does."""
    arrays = []

    def body(value):
        if isinstance(value, dict):
            return b"}(" + b"".join(plain(k) + body(v) for k, v in value.items()) + b"u"
        if not isinstance(value, np.ndarray):
            return plain(value)
        arrays.append(np.asarray(value, np.float32, order="C"))
        strides = tuple(step // 4 for step in arrays[-1].strides)
        return tensor_pickle(
            "Float", str(len(arrays) - 1), count=value.size, shape=value.shape, strides=strides
        )

    def plain(value):
        return pickle.dumps(value, 2)[2:-1]

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body(tree) + b".")
        for index, array in enumerate(arrays):
            archive.writestr(f"a/data/{index}", array.tobytes())
    return path


def zeros(*shape):
    return np.zeros(shape, np.float32)


OPTIMIZER = {"state": {0: {"step": zeros(), "exp_avg": zeros(3)}}, "param_groups": [{"lr": 0.1}]}
DINO_HEAD = {"head.mlp.0.weight": zeros(4, 192), "head.last_layer.weight_g": zeros(6, 1)}
MOCO_HEAD = {"head.0.weight": zeros(4, 192), "head.1.running_mean": zeros(4),
             "head.1.num_batches_tracked": zeros(), "head.3.weight": zeros(4, 4)}  # fmt: skip
CLIP_TEXT = {"transformer.resblocks.0.attn.in_proj_weight": zeros(6, 2), "logit_scale": zeros(),
             "positional_embedding": zeros(7, 2)}  # fmt: skip
MAE_DECODER = {"mask_token": zeros(1, 1, 8), "decoder_embed.weight": zeros(8, 192),
               "decoder_blocks.0.attn.qkv.weight": zeros(24, 8),
               "decoder_pos_embed": zeros(1, 17, 8)}  # fmt: skip
PREDICTOR = {"predictor_embed.weight": zeros(8, 192),
             "predictor_blocks.0.attn.qkv.weight": zeros(24, 8),
             "blocks.0.attn.qkv.weight": zeros(24, 8)}  # fmt: skip
NORMS = {f"norm{i}.{kind}": zeros(8 << i) for i in range(2) for kind in ("weight", "bias")}


def chunked(state):
    """Returns a ViT's names as DINOv2's training code has them: chunks of one block."""
    return {
        "".join(f"blocks.{n[7]}.{n[7:]}" if n.startswith("blocks.") else n): a
        for n, a in state.items()
    }


def wrapped_blocks(state):
    return {n.replace(".attn.", "._checkpoint_wrapped_module.attn."): a for n, a in state.items()}


def detector(state):
    """Returns a Swin as a detector's backbone: norms of its maps in place of the final one."""
    renamed = {n.replace("norm.", "norm1.") if n[:5] == "norm." else n: a for n, a in state.items()}
    kept = {n: a for n, a in renamed.items() if not n.startswith("head.") and "attn_mask" not in n}
    return {**NORMS, **kept}


LAYOUTS = {  # the model's kind, and its file's tree from the state dict; no head where it has none
    "DDP": ("timm", lambda s: {"model": prefix("module.", s), "epoch": 3}),
    "torch.compile": ("timm", lambda s: prefix("_orig_mod.", s)),
    "Lightning": (
        "timm", lambda s: {"state_dict": prefix("model.", s) | {"criterion.weight": zeros(5)},
                           "optimizer_states": {"0": OPTIMIZER}, "loops": {"a": {"b": zeros(2)}}},
    ),
    "Lightning compiled": ("timm", lambda s: {"state_dict": prefix("net._orig_mod.", s)}),
    "checkpointed blocks": ("timm", wrapped_blocks),
    "timm training": ("timm", lambda s: {"arch": "vit", "state_dict": s, "optimizer": OPTIMIZER}),
    "flat, beside an optimizer": ("timm", lambda s: {**s, "optimizer": OPTIMIZER, "epoch": 3}),
    "DeepSpeed": ("timm", lambda s: {"module": s, "optimizer": OPTIMIZER}),
    "any key": ("timm", lambda s: {"my": {"own": {"key": prefix("a.b.", s)}}, "x": zeros(2)}),
    "open_clip's timm": ("timm", lambda s: prefix("visual.trunk.", s) | CLIP_TEXT),
    "MoCo v3": (
        "timm", lambda s: {"state_dict": prefix("module.base_encoder.", without_head(s) | MOCO_HEAD)
                           | {"module.predictor.0.weight": zeros(2, 2)}},
    ),
    "iBOT's teacher": ("timm", lambda s: {"state_dict": without_head(s) | DINO_HEAD}),
    "DINO": (
        "timm", lambda s: {"teacher": prefix("backbone.", without_head(s)) | DINO_HEAD},
    ),
    "DINOv2, chunked": (
        "dinov2", lambda s: {"teacher": prefix("backbone.", chunked(s))
                             | {"dino_head.mlp.0.weight": zeros(2, 2)}},
    ),
    "MSN": (
        "timm", lambda s: {"target_encoder": prefix("module.", without_head(s)
                                                    | {"fc.fc1.weight": zeros(2, 2)}),
                           "prototypes": zeros(3, 2)},
    ),
    "I-JEPA": (
        "timm", lambda s: {"target_encoder": prefix("module.", without_head(s)),
                           "predictor": prefix("module.", PREDICTOR), "opt": OPTIMIZER},
    ),
    "MAE": ("timm", lambda s: {"model": without_head(s) | MAE_DECODER}),
    "UperNet's ViT": (
        "timm", lambda s: {"meta": {"epoch": 1}, "state_dict": prefix("backbone.", without_head(s))
                           | {"decode_head.conv_seg.weight": zeros(2, 2)}},
    ),
    "ViTDet": ("timm", lambda s: {"model": prefix("backbone.net.", without_head(s))}),
    "Swin, DDP": ("microsoft", lambda s: {"model": prefix("module.", s), "optimizer": OPTIMIZER}),
    "timm's Swin": ("timm swin", lambda s: {"state_dict": prefix("model.", s)}),
    "Google, in training": (
        "google", lambda s: prefix("opt/target/", s) | {"opt/state/step": zeros()},
    ),
    "big_vision": (
        "google", lambda s: prefix("params/img/", s) | prefix("opt/0/mu/img/", s)
        | {"params/txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": zeros(3)},
    ),
    "HF in a wrapper": ("hf vit", lambda s: {"state_dict": prefix("model.", s)}),
    "HF base": (
        "hf vit", lambda s: {n.removeprefix("vit."): a for n, a in s.items()
                             if n.startswith("vit.")},
    ),
    "HF Swin, DDP": ("hf swin", lambda s: prefix("module.", s)),
    "VLM": (
        "hf clip", lambda s: prefix("model.vision_tower.", s)
        | {"language_model.layers.0.mlp.weight": zeros(3)},
    ),
    "HF CLIP without its key": (
        "hf clip", lambda s: {n.removeprefix("vision_model."): a for n, a in s.items()},
    ),
}  # fmt: skip


def write(tree, folder):
    """Writes a tree as the format that its names are of."""
    if any("/" in name for name in tree):
        np.savez(folder / "a.npz", **tree)
        return folder / "a.npz"
    return write_tree(folder / "a.pth", tree)


@pytest.mark.parametrize("layout", mostly_long(LAYOUTS, [*LAYOUTS][::3]))
def test_a_model_is_found_under_any_keys(layout, tmp_path, caplog):
    kind, wrap = LAYOUTS[layout]
    state, want = make(kind, tmp_path)
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        path = write(wrap(state), tmp_path)
        model, variables = vitswin_jax.load_pretrained(path, **given(kind))
    if MODELS[kind][2]["num_classes"] and not model.num_classes:
        whole = vitswin_jax.load_pretrained(original(tmp_path), num_classes=0, **given(kind))
        want = logits(*whole)
    np.testing.assert_array_equal(logits(model, variables), want)
    assert "copies of" not in caplog.text


@pytest.mark.parametrize("keys", ["visual.", "state_dict.module.visual.", "clip.visual._orig_mod."])
def test_an_open_clip_tower_beside_its_text_tower(keys, tmp_path):
    model = vitswin_jax.create_model("vit", **CLIP)
    ours = flatten_dict(draw(model, scale=0.1)["params"], sep="/")
    ours["head/bias"][:] = 0  # a projection has none
    theirs = write_rules(ours, OPEN_CLIP_RULES, origin="test")
    del theirs["proj_bias"]
    text = prefix(keys.replace("visual.", "").replace("_orig_mod.", ""), CLIP_TEXT)
    path = write_tree(tmp_path / "a.pth", prefix(keys, theirs) | text)
    loaded, variables = vitswin_jax.load_pretrained(path, act="gelu")
    want = {"params": unflatten_dict(ours, sep="/")}
    np.testing.assert_array_equal(logits(loaded, variables), logits(model, want))


def original(folder, seed=0):
    (path,) = folder.glob(f"original{seed}.*")
    return path


def given(kind):
    """Returns what no file shows."""
    return {"act": "gelu"} if "clip" in kind else {}


def test_a_detectors_swin_computes_as_its_code(tmp_path, caplog):
    """Windows are not cut to the map, and the norm of the last map is the final one."""
    state, _ = make("microsoft", tmp_path)
    path = write_tree(tmp_path / "a.pth", {"state_dict": prefix("backbone.", detector(state))})
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        model, variables = vitswin_jax.load_pretrained(path)
    assert (model.num_classes, model.window_clip, model.pad_before_roll) == (0, "never", True)
    assert "norm1, of the last map, is taken as the final norm" in caplog.text
    assert "not used: norm0.bias, norm0.weight" in caplog.text
    scale = np.asarray(variables["params"]["norm"]["scale"])
    np.testing.assert_array_equal(scale, state["norm.weight"])


def test_wrappers_come_back_when_it_is_written(tmp_path):
    state, _ = make("timm", tmp_path)
    path = write_tree(tmp_path / "a.pth", {"state_dict": prefix("model.module.", state)})
    opened = vitswin_jax.open_pretrained(path)
    target = tmp_path / "b.safetensors"
    vitswin_jax.save_pretrained(
        target, opened.model, opened.variables, format="timm", metadata=opened.metadata
    )
    assert safetensors.numpy.load_file(target).keys() == prefix("model.module.", state).keys()


def dinov2s_own(state):
    return {"register_tokens" if n == "reg_token" else n: a for n, a in state.items()} | {
        "mask_token": zeros(1, 192)
    }


OWN_CODE = {  # fields beside VIT's, the file's tree, how its code resizes, how images are given
    "timm": ({}, lambda s: s, resize.bicubic_antialiased, HALF),
    "DINO": (
        {}, lambda s: {"teacher": prefix("backbone.", s) | DINO_HEAD}, resize.bicubic_by_scale,
        IMAGENET,
    ),
    "iBOT": (
        {}, lambda s: {"state_dict": s | DINO_HEAD}, resize.bicubic_by_scale, IMAGENET,
    ),
    "DINOv2": ({"init_values": 1e-5}, dinov2s_own, resize.bicubic_by_scale, HALF),
    "DINOv2 with registers": (
        {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True}, dinov2s_own,
        resize.bicubic_antialiased, HALF,
    ),
    "MSN": (
        {}, lambda s: {"target_encoder": prefix("module.", s | {"fc.fc1.weight": zeros(2, 2)})},
        resize.bicubic, IMAGENET,
    ),
    "I-JEPA": (
        {}, lambda s: {"target_encoder": prefix("module.", s),
                       "predictor": prefix("module.", PREDICTOR)},
        resize.bicubic, IMAGENET,
    ),
    "MAE": ({}, lambda s: {"model": s | MAE_DECODER}, resize.bicubic, IMAGENET),
}  # fmt: skip


@pytest.mark.parametrize("code", OWN_CODE)
def test_a_file_is_resized_and_shown_images_as_by_its_own_code(code, tmp_path, monkeypatch):
    fields, wrap, method, images = OWN_CODE[code]
    monkeypatch.setitem(MODELS, code, ("vit", "timm", VIT | {"num_classes": 0} | fields))
    state, _ = make(code, tmp_path)
    opened = vitswin_jax.open_pretrained(write(wrap(state), tmp_path), img_size=28)
    table = state["pos_embed"]
    want = resize.resize_pos_embed(table, old=(4, 4), new=(7, 7), method=method)
    np.testing.assert_allclose(opened.variables["params"]["pos_embed"], want, atol=1e-6)
    assert opened.preprocess.mean == images["mean"]


def test_moco_v3s_small_vit_has_12_heads(tmp_path, monkeypatch):
    small = VIT | {"embed_dim": 384, "num_heads": 12, "num_classes": 0}
    monkeypatch.setitem(MODELS, "moco", ("vit", "timm", small))
    state, want = make("moco", tmp_path)
    tree = {"state_dict": prefix("module.base_encoder.", state | MOCO_HEAD)}
    model, variables = vitswin_jax.load_pretrained(write(tree, tmp_path))
    assert model.num_heads == 12
    np.testing.assert_array_equal(logits(model, variables), want)
    with pytest.raises(UserError, match="num_heads=6 was given, and the tensors show 12"):
        vitswin_jax.load_pretrained(tmp_path / "a.pth", num_heads=6)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Three models of one shape, each with the logits it gives."""
    folder = tmp_path_factory.mktemp("copies")
    return [make("timm", folder, seed) for seed in range(3)]


COPIES = {  # a tree of copies 0 and 1 of which 0 is taken, the key of 1, the reason
    "timm": (
        lambda a, b: {"state_dict": b, "state_dict_ema": a}, "state_dict", "timm's",
    ),
    "DeiT": (lambda a, b: {"model": b, "model_ema": a}, "model", "timm's"),
    "average": (
        lambda a, b: {"model": b, "ema": prefix("module.", a)}, "model", "timm's",
    ),
    "Lightning": (
        lambda a, b: {"state_dict": prefix("model.", b) | prefix("model_ema.module.", a)},
        "model", "timm's",
    ),
    "DINO": (
        lambda a, b: {"student": prefix("module.backbone.", b), "teacher": prefix("backbone.", a)},
        "student", "DINO's",
    ),
    "DINOv2": (
        lambda a, b: {"model": prefix("student.backbone.", b) | prefix("teacher.backbone.", a)},
        "student", "DINO's",
    ),
    "MoCo v3": (
        lambda a, b: {"state_dict": prefix("module.base_encoder.", a)
                      | prefix("module.momentum_encoder.", b)},
        "momentum_encoder", "MoCo v3's",
    ),
    "MSN and I-JEPA": (
        lambda a, b: {"encoder": prefix("module.", b), "target_encoder": prefix("module.", a)},
        "encoder", "MSN's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COPIES)
def test_of_several_copies_the_originals_choice_is_taken_or_the_users(
    case, copies, tmp_path, caplog
):
    wrap, key, reason = COPIES[case]
    (first, taken), (second, left), _ = copies
    path = write_tree(tmp_path / "checkpoint.pth.tar", wrap(first, second))
    with caplog.at_level(logging.INFO, "vitswin_jax"):
        np.testing.assert_array_equal(logits(*vitswin_jax.load_pretrained(path)), taken)
    (line,) = [m for m in caplog.messages if "copies of the model" in m]
    assert line.startswith(f"{path}: has 2 copies of the model; ")
    assert f"as by {reason}" in line
    assert f"give checkpoint.pth.tar@{key}" in line
    np.testing.assert_array_equal(logits(*vitswin_jax.load_pretrained(f"{path}@{key}")), left)


def test_copies_that_no_code_ranks_are_refused_in_a_line_that_lists_them(copies, tmp_path):
    a, b, c = (state for state, _ in copies)
    path = write_tree(tmp_path / "a.pth", {"left": a, "right": b, "third": prefix("module.", c)})
    with pytest.raises(
        UserError, match=r"a\.pth: has 3 models, left, right, third; choose"
    ) as error:
        vitswin_jax.load_pretrained(path)
    assert len(str(error.value)) < 400
    for key, (_, want) in zip(("left", "right", "third.module"), copies, strict=True):
        np.testing.assert_array_equal(logits(*vitswin_jax.load_pretrained(f"{path}@{key}")), want)


def test_a_key_that_no_copy_has_is_refused_with_those_there_are(copies, tmp_path):
    (a, _), (b, _), _ = copies
    path = write_tree(tmp_path / "a.pth", {"state_dict": a, "state_dict_ema": b})
    with pytest.raises(UserError, match=r"under 'ema'; it has state_dict, state_dict_ema\."):
        vitswin_jax.load_pretrained(f"{path}@ema")
    native = tmp_path / "native.safetensors"
    model = vitswin_jax.create_model("vit", **VIT)
    vitswin_jax.save_pretrained(native, model, vitswin_jax.load_pretrained(f"{path}@state_dict")[1])
    with pytest.raises(UserError, match=r"native\.safetensors: .* one model, and has no 'ema'"):
        vitswin_jax.load_pretrained(f"{native}@ema")


def test_every_command_takes_a_key(copies, tmp_path, capsys):
    (a, _), (b, _), _ = copies
    path = write_tree(tmp_path / "a.pth", {"x": a, "y": b})
    assert main(["models", f"{path}@x"]) == 0
    assert main(["convert", f"{path}@x", str(tmp_path / "x.safetensors"), "--verify"]) == 0
    assert "largest difference of the logits: 0" in capsys.readouterr().out


def test_a_path_that_exists_wins_over_a_key(copies, tmp_path):
    (a, taken), (b, _), _ = copies
    write_tree(tmp_path / "a.pth", {"x": b, "y": b})
    path = write_tree(tmp_path / "a.pth@x", a)
    np.testing.assert_array_equal(logits(*vitswin_jax.load_pretrained(path)), taken)


def test_only_a_decoder_is_no_model(tmp_path):
    path = write_tree(tmp_path / "a.pth", {"model": MAE_DECODER | PREDICTOR})
    with pytest.raises(UserError, match=r"a\.pth: is from no known source") as error:
        vitswin_jax.load_pretrained(path)
    assert len(str(error.value)) < 400

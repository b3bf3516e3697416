"""Folders that timm and transformers take as they are, and that say all that a model is."""

import json

import folders
import jax
import numpy as np
import pytest
import timm_models
from applied import apply
from kinds import mostly_long

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.models.variants import VARIANTS
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.metadata import model_fields
from vitswin_jax.weights.open import open_pretrained
from vitswin_jax.weights.sources.timm_folder import NOT_TIMMS

FAMILIES = ("vit", "swin", "swinv2", "swinv2_cr")
OWN = {"init_values", "dist_head", "dtype", "pad_before_roll", "crop_to_patches"}
"""Fields that no folder states, of cases that give the same numbers without."""


SHORT = {"timm-vit", "timm-swin_small", "huggingface-swinv2"}
"""The cases of each kind that every run tries; the others are long."""


@pytest.mark.parametrize(
    "case",
    mostly_long(folders.CASES, SHORT),
)
def test_a_folder_comes_back_without_any_hint(case, tmp_path):
    model, metadata = folders.write_case(case, tmp_path)
    opened = open_pretrained(tmp_path / case)
    differing = {
        field: (ours, theirs)
        for field, ours in model_fields(model).items()
        if (theirs := getattr(opened.model, field)) != ours and field not in OWN
    }
    assert pair(opened.model.img_size) == pair(model.img_size)
    differing.pop("img_size", None)
    if case == "timm-vit_mlp":  # 4304 / 1152 of 48 is no whole width
        del differing["mlp_ratio"]
    if "window_size" in differing:  # one for each stage, as the stages' maps have it
        assert case == "timm-swin_windows"
        del differing["window_size"]
    assert differing == {}
    assert opened.metadata.class_names == metadata["class_names"]
    with np.load(tmp_path / f"{case}.npz") as arrays:
        images, want, picture, pixels = (
            arrays[key] for key in ("images", "logits", "picture", "pixels")
        )
    with jax.default_matmul_precision("highest"):
        got = apply(opened.model, opened.variables, images)
    assert float(np.abs(got - want).max()) <= 2e-5 * want.std()
    np.testing.assert_allclose(opened.preprocess(picture), pixels, atol=1e-4)


@pytest.mark.parametrize("case", folders.CASES)
def test_the_library_takes_it_as_it_is(case, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip(
        "timm" if case.startswith("timm-") else "transformers", exc_type=ImportError
    )
    folders.write_case(case, tmp_path)
    assert folders.difference(case, tmp_path) <= 5e-5


def test_architectures_are_timms_names():
    ours = {name for name, (family, _) in VARIANTS.items() if family in FAMILIES}
    assert {name for name in ours if not NOT_TIMMS.fullmatch(name)} == set(timm_models.MODELS)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.long
def test_a_published_model_is_its_name_alone(tmp_path):
    model = vitswin_jax.create_model("vit_tiny_patch16_224")
    variables = jax.tree.map(
        np.asarray, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 224, 224, 3)))
    )
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        vitswin_jax.save_pretrained(
            tmp_path / name, model, variables, format="timm", metadata={"name": name}
        )
        config = config_of(tmp_path / name)
        assert (config["architecture"], config["model_args"]) == (name, {})
        assert config["pretrained_cfg"]["classifier"] == "head"
        assert config["pretrained_cfg"]["first_conv"] == "patch_embed.proj"


RATES = {  # what KerasHub reads beside the sizes, of a case
    "huggingface-vit": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2},
    "huggingface-swinv2": {
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", RATES)
def test_a_configuration_has_the_rates_of_training(case, tmp_path):
    model, _ = folders.write_case(case, tmp_path)
    variables = open_pretrained(tmp_path / case).variables
    trained = model.clone(drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.3)
    vitswin_jax.save_pretrained(tmp_path / "rates", trained, variables, format="huggingface")
    assert config_of(tmp_path / "rates").items() >= RATES[case].items()
    assert open_pretrained(tmp_path / "rates").model == open_pretrained(tmp_path / case).model


def test_what_is_in_the_way_or_has_no_folder_is_one_line(tmp_path):
    model, _ = folders.write_case("timm-vit", tmp_path)
    opened = open_pretrained(tmp_path / "timm-vit")

    def save(path, format, model=model, variables=opened.variables):
        vitswin_jax.save_pretrained(path, model, variables, format=format)

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file, and timm without a suffix is a folder"):
        save(tmp_path / "file", "timm")
    with pytest.raises(UserError, match=r"google files end in \.npz, not ''"):
        save(tmp_path / "new", "google")
    with pytest.raises(UserError, match=r"google files end in \.npz, not a folder"):
        save(tmp_path / "timm-vit", "google")
    with pytest.raises(UserError, match=r"cannot write .*no/folder: No such file"):
        save(tmp_path / "no" / "folder", "timm")
    before = sorted(path.name for path in tmp_path.iterdir())
    dinov2, _ = folders.write_case("timm-dinov2_registers", tmp_path / ".")
    variables = open_pretrained(tmp_path / "timm-dinov2_registers", num_classes=3).variables
    with pytest.raises(UserError, match="DINOv2 classifies the class token beside the mean"):
        save(tmp_path / "hf", "huggingface", dinov2.clone(num_classes=3), variables)
    after = sorted(path.name for path in tmp_path.iterdir() if "dinov2" not in path.name)
    assert after == before


def test_an_existing_folder_keeps_its_other_files(tmp_path):
    folders.write_case("huggingface-vit", tmp_path)
    folder = tmp_path / "huggingface-vit"
    (folder / "README.md").write_text("mine")
    first = (folder / "model.safetensors").read_bytes()
    folders.write_case("huggingface-vit", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip

"""Configurations of timm and transformers, as they lie beside weights on the hub."""

import json

import pytest

from vitswin_jax.weights.hub import HubConfig, read_hub_config

HALF = [0.5, 0.5, 0.5]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TIMM = {
    "architecture": "vit_base_patch16_clip_384",
    "pretrained_cfg": {
        "tag": "laion2b_ft_in1k", "mean": MEAN, "std": STD, "crop_pct": 1.0, "crop_mode": "squash",
        "interpolation": "bicubic", "input_size": [3, 384, 384],
    },
}  # fmt: skip
# As google/vit-base-patch16-224, facebook/dinov2-base and an older format have them.
VIT = {"image_mean": HALF, "image_std": HALF, "resample": 2, "size": {"height": 224, "width": 224}}
DINOV2 = {"image_mean": MEAN, "image_std": STD, "resample": 3, "size": {"shortest_edge": 256},
          "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}  # fmt: skip
OLD = {"image_mean": MEAN, "image_std": STD, "resample": 3, "size": 256, "crop_size": 224,
       "do_center_crop": True}  # fmt: skip
CROPPED = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_fraction": 0.875}


def write(folder, config, processor=None):
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_timms(tmp_path):
    found = read_hub_config(write(tmp_path, TIMM))
    assert found.variant == "vit_base_patch16_clip_384.laion2b_ft_in1k"
    assert found.images == {
        "mean": MEAN, "std": STD, "crop_fraction": 1.0, "crop_mode": "squash",
        "interpolation": "bicubic",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("processor", "images"),
    [
        (VIT, {"mean": HALF, "std": HALF, "interpolation": "bilinear", "crop_mode": "squash",
               "crop_fraction": 1.0}),
        (DINOV2, CROPPED),
        (OLD, CROPPED),
        (OLD | {"resample": 99}, None),
        ({"image_mean": MEAN}, None),
        ([1], None),
    ],
)  # fmt: skip
def test_transformers(tmp_path, processor, images):
    assert read_hub_config(write(tmp_path, {}, processor)).images == images


def test_names_of_classes(tmp_path):
    labels = {"id2label": {"1": "goldfish", "0": "tench"}}
    assert read_hub_config(write(tmp_path, labels)).class_names == ("tench", "goldfish")
    made_up = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    for config in (made_up, {"id2label": {"0": "a", "2": "c"}}, {"id2label": ["a"]}):
        assert read_hub_config(write(tmp_path, config)).class_names is None


def test_other_programs_files_tell_nothing(tmp_path):
    assert read_hub_config(tmp_path) == HubConfig()
    (tmp_path / "config.json").write_text("no JSON")
    assert read_hub_config(tmp_path) == HubConfig()
    assert read_hub_config(write(tmp_path, ["a list"])) == HubConfig()

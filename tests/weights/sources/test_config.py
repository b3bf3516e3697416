"""Configurations of timm and transformers, as they lie beside weights on the hub."""

import json

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.sources.config import read_config

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
       "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"}  # fmt: skip
CROPPED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic",
           "crop_mode": "center", "crop_fraction": 0.875}  # fmt: skip
SQUASHED = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear",
            "crop_mode": "squash", "crop_fraction": 1.0}  # fmt: skip


def write(folder, config=None, processor=None):
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def timm(**args):
    return {"architecture": "vit_small_patch16_224", "model_args": args, "pretrained_cfg": {}}


def test_timms(tmp_path):
    found = read_config(write(tmp_path, TIMM))
    assert found.variant == "vit_base_patch16_clip_384.laion2b_ft_in1k"
    assert found.images == {
        "mean": tuple(MEAN), "std": tuple(STD), "crop_fraction": 1.0, "crop_mode": "squash",
        "interpolation": "bicubic",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (timm(num_heads=12, img_size=[64, 96], depth=1, drop_path_rate=0.1),
         {"num_heads": 12, "img_size": (64, 96), "depth": 1}),
        (timm(global_pool="avg", fc_norm=False, act_layer="quick_gelu", qk_norm=False),
         {"global_pool": "avg", "fc_norm": False, "act": "quick_gelu", "qk_norm": False}),
        (timm(global_pool="avgmax", norm_layer="rmsnorm", proj_bias=False),
         {"global_pool": "avgmax", "norm_layer": "rmsnorm", "proj_bias": False,
          "mlp_bias": False}),
        ({"architecture": "eva02_tiny_patch14_224",
          "model_args": {"num_reg_tokens": 2, "use_fc_norm": False, "rope_type": "dinov3",
                         "use_post_transformer_norm": False, "ref_feat_shape": 8,
                         "mlp_ratio": 2.0}},
         {"reg_tokens": 2, "fc_norm": False, "final_norm": False, "rope_type": "centred",
          "rope_ref_grid": (8, 8), "mlp_ratio": 4.0}),
        (timm(global_pool="", fc_norm=None), {}),
        # `_update_default_model_kwargs`: arguments win over the top level, that over the weights'.
        (timm(num_classes=3) | {"num_classes": 4}, {"num_classes": 3}),
        (timm() | {"num_classes": 4, "pretrained_cfg": {"num_classes": 5}}, {"num_classes": 4}),
        (timm() | {"pretrained_cfg": {"fixed_input_size": True, "input_size": [3, 96, 64]}},
         {"img_size": (96, 64)}),
        (timm() | {"pretrained_cfg": {"input_size": [3, 96, 64]}}, {}),
        (timm(always_partition=True, window_size=[7, 7, 14, 7]),
         {"window_clip": "never", "window_size": ((7, 7), (7, 7), (14, 14), (7, 7))}),
        (timm(window_size=[7, 14]), {"window_size": (7, 14)}),
    ],
)  # fmt: skip
def test_timms_arguments(tmp_path, config, fields):
    assert read_config(write(tmp_path, config)).fields == fields


def test_timms_older_files_have_one_level(tmp_path):
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 2, "mean": MEAN, "std": STD,
              "crop_pct": 0.9, "interpolation": "bicubic", "labels": ["a", "b"]}  # fmt: skip
    found = read_config(write(tmp_path, config))
    assert (found.variant, found.fields) == ("vit_tiny_patch16_224", {"num_classes": 2})
    assert found.class_names == ("a", "b")
    assert found.images["crop_fraction"] == 0.9


@pytest.mark.parametrize(
    ("processor", "images"),
    [
        (VIT, SQUASHED),
        (DINOV2, CROPPED),
        (OLD, CROPPED),
        # A number is a square for ViTImageProcessor, and the shorter edge for CLIP's.
        ({"size": 224}, SQUASHED),
        ({"do_normalize": False}, SQUASHED | {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, SQUASHED),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3}, SQUASHED),
        ({"rescale_factor": 0.00392156862745098, "resample": None}, SQUASHED),
        ({"image_processor_type": "SiglipImageProcessorFast"},
         SQUASHED | {"interpolation": "bicubic"}),
        ({"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD,
          "size": {"shortest_edge": 256}}, CROPPED),
        ({"image_processor_type": "DeiTFeatureExtractor"},
         SQUASHED
         | {"interpolation": "bicubic", "crop_mode": "squash_crop", "crop_fraction": 0.875}),
        (VIT | {"image_processor_type": "OtherImageProcessor"}, SQUASHED),
    ],
)  # fmt: skip
def test_processors(tmp_path, processor, images):
    """Defaults are those that transformers 5.24's classes print of themselves."""
    found = read_config(write(tmp_path, processor=processor)).images
    assert found.keys() == images.keys()
    for key, value in images.items():
        right = value if key in ("crop_mode", "interpolation") else pytest.approx(value)
        assert found[key] == right, key


def test_names_of_classes(tmp_path):
    labels = {"id2label": {"1": "goldfish", "0": "tench"}}
    assert read_config(write(tmp_path, labels)).class_names == ("tench", "goldfish")
    made_up = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    for config in (made_up, {"id2label": {"0": "a", "2": "c"}}, {"id2label": None}):
        assert read_config(write(tmp_path, config)).class_names is None


@pytest.mark.parametrize(
    ("config", "fields", "defaults"),
    [
        ({"model_type": "vit", "hidden_size": 384, "intermediate_size": 1536, "hidden_act": "gelu",
          "num_attention_heads": 6, "layer_norm_eps": 1e-3, "image_size": [64, 32]},
         {"embed_dim": 384, "mlp_ratio": 4.0, "act": "gelu", "num_heads": 6, "norm_eps": 1e-3,
          "img_size": (64, 32)},
         {"num_heads": 12, "act": "gelu", "norm_eps": 1e-12}),
        # google/siglip-base-patch16-224 has no more than this.
        ({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}},
         {}, {"num_heads": 12, "act": "gelu_tanh", "norm_eps": 1e-6}),
        ({"model_type": "clip", "vision_config": {"hidden_act": "gelu", "patch_size": 14}},
         {"act": "gelu", "patch_size": 14},
         {"num_heads": 12, "act": "quick_gelu", "norm_eps": 1e-5}),
        ({"model_type": "swinv2", "depths": [2, 2], "pretrained_window_sizes": [0, 0],
          "use_absolute_embeddings": False},
         {"depths": (2, 2), "pretrained_window_sizes": (0, 0), "ape": False},
         {"act": "gelu", "norm_eps": 1e-5, "window_size": 7, "img_size": 224}),
        ({"model_type": "dinov2", "hidden_act": "gelu", "use_swiglu_ffn": True}, {},
         {"num_heads": 12, "act": "gelu", "norm_eps": 1e-6}),
    ],
)  # fmt: skip
def test_transformers_fields(tmp_path, config, fields, defaults):
    found = read_config(write(tmp_path, config))
    assert (found.fields, found.defaults) == (fields, defaults)


@pytest.mark.parametrize(
    ("config", "processor", "says"),
    [
        ({"architecture": "vit_base_mci_224"}, None, "'vit_base_mci_224'"),
        ({"model_type": "dinov3_convnext"}, None, "'dinov3_convnext', a model that"),
        ({"model_type": "blip", "vision_config": {}}, None, "'blip', a model that"),
        ({"model_type": "vit", "hidden_act": "mish"}, None, "hidden_act is 'mish'"),
        (
            {"model_type": "vit", "hidden_size": "wide"},
            None,
            'hidden_size is "wide"; it must be an',
        ),
        (timm(global_pool="prr"), None, "global_pool='prr'"),
        (timm(qk_norm=True, norm_layer="groupnorm"), None, "have norm_layer='groupnorm'"),
        (timm(a_new_option=1), None, "a_new_option=1"),
        (timm(depth="12"), None, 'model_args.depth is "12"'),
        ([], None, "must be an object"),
        (None, {"resample": 99}, "resample is 99; it must be at most 5"),
        (None, [1], "must be an object"),
        (None, {"rescale_factor": 0}, "must be more than 0"),
        (None, {"size": {"height": 0}}, "size.height is 0"),
        (None, {"image_processor_type": "XImageProcessor"}, "the defaults of 'X' are not known"),
    ],
)
def test_what_no_model_here_has_is_refused(tmp_path, config, processor, says):
    with pytest.raises(UserError) as raised:
        read_config(write(tmp_path, config, processor))
    line = str(raised.value)
    assert says in line
    assert line.startswith(str(tmp_path))
    assert "\n" not in line and len(line) < 400


def test_a_folder_without_configurations(tmp_path):
    assert read_config(tmp_path) is None
    assert read_config(None) is None
    (tmp_path / "config.json").write_text("no JSON")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_config(tmp_path)

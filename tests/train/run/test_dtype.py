"""What a run computes in, by platform, by hand, and when it resumes elsewhere."""

import json
import logging
from types import SimpleNamespace

import pytest

from configs import base
from vitswin_jax.train.run.dtype import dtype_for, with_dtype
from vitswin_jax.weights.runs import CONFIG

CPU = SimpleNamespace(platform="cpu")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.fixture
def config():
    return base.recipe(model={"name": "vit_tiny_patch16_224"})


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (CPU, "float32"),
        (TPU, "bfloat16"),
        (gpu("7.0"), "float32"),  # V100
        (gpu("7.5"), "float32"),  # T4
        (gpu("8.0"), "bfloat16"),  # A100
        (gpu("9.0"), "bfloat16"),  # H100
        (gpu("12.0"), "bfloat16"),
        (SimpleNamespace(platform="gpu"), "bfloat16"),  # described, without its age
    ],
)
def test_auto_goes_by_the_device(config, device, dtype):
    assert dtype_for(device) == dtype
    assert with_dtype(config, device).model.dtype == dtype
    assert config.model.dtype == "auto"  # as the caller has it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", [CPU, gpu("7.0"), TPU])
def test_a_type_by_hand_wins_without_a_line(config, dtype, device, caplog):
    caplog.set_level(logging.INFO, "vitswin_jax")
    config.model.dtype = dtype
    assert with_dtype(config, device).model.dtype == dtype
    assert not caplog.messages


@pytest.mark.parametrize(
    ("began", "device", "line"),
    [
        ("bfloat16", CPU, "as at the start of the run (a new run on cpu would compute in float32)"),
        ("float32", TPU, "as at the start of the run (a new run on tpu would compute in bfloat16)"),
        ("bfloat16", TPU, None),
    ],
)
def test_a_run_keeps_its_type_on_another_platform(config, began, device, line, tmp_path, caplog):
    caplog.set_level(logging.INFO, "vitswin_jax")
    (tmp_path / CONFIG).write_text(json.dumps({"model": {"dtype": began}}), encoding="utf-8")
    assert with_dtype(config, device, tmp_path).model.dtype == began
    assert line in caplog.text if line else not caplog.messages


@pytest.mark.parametrize("text", ["{", '{"model": {}}', '{"model": {"dtype": "auto"}}', "[]"])
def test_a_damaged_config_decides_nothing(config, text, tmp_path):
    (tmp_path / CONFIG).write_text(text, encoding="utf-8")
    assert with_dtype(config, CPU, tmp_path).model.dtype == "float32"


def test_every_recipe_goes_by_the_device():
    from configs import deit, digits, folder, swin, vit

    for recipe in (deit, digits, folder, swin, vit):
        assert recipe.get_config().model.dtype == "auto"

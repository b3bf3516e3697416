"""What `attn_impl="auto"` takes where, and what it says of what it passes over."""

import importlib.util
import logging

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.nn import choices
from vitswin_jax.nn.choices import SEQUENCES, WINDOWS, Setting, check, choose, tokamax_kernel
from vitswin_jax.nn.forms import Forms, traced_for


@pytest.fixture(autouse=True)
def fresh_log():
    """Has each test see lines that are logged once a process."""
    choices._log.cache_clear()


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "facts", "implementation"),
    [
        ("cpu", "float32", 197, {}, "xla"),
        ("cpu", "float32", 512, {}, "cached"),
        ("cpu", "bfloat16", 577, {}, "cached"),
        ("cpu", "float32", 577, {"biased": True}, "xla"),
        ("cpu", "float32", 577, {"dropout": True}, "xla"),
        ("gpu", "bfloat16", 50, {}, "xla"),
        ("gpu", "bfloat16", 64, {}, "cudnn"),
        ("gpu", "bfloat16", 197, {}, "cudnn"),
        ("gpu", "float16", 577, {}, "cudnn"),
        ("gpu", "bfloat16", 197, {"head_dim": 128}, "cudnn"),
        ("gpu", "bfloat16", 197, {"head_dim": 132}, "xla"),
        ("gpu", "bfloat16", 197, {"head_dim": 36}, "xla"),
        ("gpu", "float32", 197, {}, "xla"),
        ("gpu", "bfloat16", 197, {"biased": True}, "xla"),
        ("gpu", "bfloat16", 197, {"dropout": True}, "xla"),
        ("gpu", "bfloat16", 197, {"capability": 7.5}, "xla"),
        ("gpu", "bfloat16", 197, {"cudnn": False}, "xla"),
        ("tpu", "bfloat16", 577, {}, "xla"),
        ("rocm", "bfloat16", 577, {}, "xla"),
    ],
)
def test_sequences(platform, dtype, tokens, facts, implementation):
    setting = Setting(platform, dtype, tokens, **{"head_dim": 64} | facts)
    assert choose(SEQUENCES, setting) == implementation


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "facts", "implementation"),
    [
        ("cpu", "float32", 49, {}, "xla"),
        ("cpu", "bfloat16", 49, {"paired": True}, "xla"),
        ("gpu", "bfloat16", 49, {}, "fused"),
        ("gpu", "float16", 256, {}, "fused"),
        ("gpu", "bfloat16", 576, {}, "xla"),
        ("gpu", "float32", 49, {}, "xla"),
        ("gpu", "bfloat16", 49, {"dropout": True}, "xla"),
        ("gpu", "bfloat16", 49, {"capability": 7.0}, "xla"),
        ("gpu", "bfloat16", 49, {"triton": False}, "xla"),
        ("tpu", "bfloat16", 49, {"paired": True}, "pairs"),
        ("tpu", "bfloat16", 49, {"paired": False}, "xla"),
    ],
)
def test_windows(platform, dtype, tokens, facts, implementation):
    setting = Setting(platform, dtype, tokens, head_dim=32, biased=True, **facts)
    assert choose(WINDOWS, setting) == implementation


def test_what_a_kernel_does_not_take_is_logged_once(caplog):
    caplog.set_level(logging.WARNING)
    for tokens in (197, 257):
        choose(SEQUENCES, Setting("gpu", "float32", tokens, 64))
    choose(SEQUENCES, Setting("gpu", "bfloat16", 197, 64, dropout=True))
    choose(SEQUENCES, Setting("gpu", "bfloat16", 50, 64, dropout=True))  # XLA is faster anyway
    assert caplog.messages == [
        "attn_impl='auto': cudnn does not take other types than bfloat16 and float16; 'xla' does.",
        "attn_impl='auto': cudnn does not take attention dropout; 'xla' does.",
    ]


@pytest.mark.parametrize(
    ("rows", "name", "setting", "message"),
    [
        (SEQUENCES, "cudnn", Setting("cpu", "bfloat16", 197, 64), "is for GPUs, and this is cpu"),
        (SEQUENCES, "cudnn", Setting("gpu", "float32", 197, 64), "other types than bfloat16"),
        (SEQUENCES, "cudnn", Setting("gpu", "bfloat16", 197, 64, cudnn=False), "finds no cuDNN"),
        (WINDOWS, "fused", Setting("tpu", "bfloat16", 49, 32), "is for GPUs, and this is tpu"),
        (WINDOWS, "fused", Setting("gpu", "bfloat16", 576, 32), "windows of more than 256 tokens"),
    ],
)
def test_what_is_asked_for_by_name_is_refused_in_a_line(rows, name, setting, message):
    with pytest.raises(UserError, match=message) as caught:
        check(rows, name, setting)
    text = str(caught.value)
    assert text.startswith(f"attn_impl='{name}' ") and text.endswith("use 'auto'.")
    assert "\n" not in text


def test_what_a_name_takes_is_not_what_is_fastest():
    """A user may ask for cuDNN at few tokens, and for the kernel in float32."""
    check(SEQUENCES, "cudnn", Setting("gpu", "bfloat16", 50, 64))
    check(WINDOWS, "fused", Setting("gpu", "float32", 49, 32))
    check(WINDOWS, "pairs", Setting("cpu", "float32", 49, 32))


@pytest.fixture
def tokamax_here(monkeypatch):
    """Has the package found, whether it is installed or not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("platform", "dtype", "facts", "kernel"),
    [
        ("gpu", "bfloat16", {}, "mosaic"),
        ("gpu", "bfloat16", {"capability": 10.0}, "mosaic"),
        ("gpu", "bfloat16", {"triton": False}, "mosaic"),
        ("gpu", "bfloat16", {"head_dim": 72, "tokens": 197}, "mosaic"),
        ("gpu", "bfloat16", {"tokens": 64, "biased": True}, "mosaic"),
        ("gpu", "bfloat16", {"tokens": 49, "biased": True}, "triton"),
        ("gpu", "bfloat16", {"tokens": 144, "biased": True}, "triton"),
        ("gpu", "float32", {}, "triton"),
        ("gpu", "bfloat16", {"capability": 8.0}, "triton"),  # no backward pass in Mosaic
        ("gpu", "bfloat16", {"capability": 12.0}, "triton"),
        ("cpu", "float32", {"head_dim": 4}, "xla"),
        ("cpu", "float32", {"devices": 8}, "xla"),
        ("tpu", "bfloat16", {}, "xla"),
    ],
)
def test_kernels_of_tokamax(tokamax_here, platform, dtype, facts, kernel):
    setting = Setting(**{"tokens": 49, "head_dim": 32} | facts, platform=platform, dtype=dtype)
    assert tokamax_kernel(setting) == kernel
    with traced_for(forms=Forms(tokamax="triton")):  # where both serve, the one that is asked for
        served = platform == "gpu" and facts.get("triton", True)
        assert tokamax_kernel(setting) == ("triton" if served else kernel)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"dropout": True}, "does not take attention dropout"),
        ({"devices": 2}, "does not take a mesh of several GPUs"),
        ({"head_dim": 8}, "does not take heads of fewer than 16 or more than 128 channels"),
        ({"capability": 7.5}, "does not take a GPU older than compute capability 8.0"),
        ({"dtype": "float32", "triton": False}, "by a JAX without Pallas for Triton"),
        ({"biased": True, "triton": False}, "tokens that 32 does not divide"),
        ({"capability": 8.6, "triton": False}, "by a JAX without Pallas for Triton"),
    ],
)
@pytest.mark.parametrize("rows", [SEQUENCES, WINDOWS])
def test_what_tokamax_does_not_take_is_one_line(tokamax_here, rows, facts, message):
    setting = Setting(**{"dtype": "bfloat16", "tokens": 49, "head_dim": 32} | facts, platform="gpu")
    with pytest.raises(UserError, match=message) as caught:
        check(rows, "tokamax", setting)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_without_the_package_the_line_says_how_to_get_it(monkeypatch, platform):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"attn_impl='tokamax' needs .*'vitswin_jax\[tokamax\]'"):
        check(SEQUENCES, "tokamax", Setting(platform, "bfloat16", 197, 64))


@pytest.mark.parametrize("rows", [SEQUENCES, WINDOWS])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_auto_does_not_take_tokamax(tokamax_here, rows, platform):
    for tokens in (49, 197, 577):
        assert choose(rows, Setting(platform, "bfloat16", tokens, 64)) != "tokamax"

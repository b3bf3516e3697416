"""What is prepared before a run's first step."""

import logging
from types import SimpleNamespace

import pytest

from vitswin_jax.train.run.prepare import check_quantize


@pytest.mark.parametrize(
    ("name", "capability", "lines"), [("fp8", "8.0", 1), ("fp8", "9.0", 0), ("none", "8.0", 0)]
)
def test_a_device_that_emulates_8_bit_products_is_named_in_one_line(
    name, capability, lines, caplog
):
    device = SimpleNamespace(platform="gpu", device_kind="A card", compute_capability=capability)
    with caplog.at_level(logging.INFO):
        check_quantize(name, device)
    assert len(caplog.messages) == lines
    assert all("quantize=fp8" in line and "A card" in line for line in caplog.messages)

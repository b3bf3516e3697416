"""Tests run on eight CPU devices, with silent rank promotion an error."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import matplotlib as mpl
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
mpl.use("Agg")


@pytest.fixture
def key():
    """A random key."""
    return jax.random.key(0)

"""Tests run on eight CPU devices, with silent rank promotion an error.

They compile far more than they compute, so programs are not optimised: a third of the time. None
is kept in the user's cache.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import matplotlib as mpl
import pytest

pytest_plugins = ["fixtures_models", "fixtures_analysis", "fixtures_train", "fixtures_programs"]

jax.config.update("jax_numpy_rank_promotion", "raise")
mpl.use("Agg")


@pytest.fixture
def key():
    """A random key."""
    return jax.random.key(0)

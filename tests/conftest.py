"""Tests run on eight CPU devices, with silent rank promotion an error.

Programs are compiled fast rather than well, by xla_flags. None is kept in the user's cache.
"""

import gc
import os
import signal

from xla_flags import UNOPTIMISED

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # 6 % less time: no call stack per operation
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count=8 {UNOPTIMISED}"
)

# A shell starts what it puts in the background with Ctrl-C ignored, nohup with the terminal's end,
# and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis
import jax
import matplotlib as mpl
import pytest

# Tracing makes many objects that live long. The collector searches all of them each time it runs,
# and at its default thresholds takes an eighth of the tests' time.
gc.set_threshold(100_000, 20, 20)

pytest_plugins = [
    "fixtures_models",
    "fixtures_analysis",
    "fixtures_train",
    "fixtures_hosts",
    "fixtures_programs",
    "fixtures_hub",
]

jax.config.update("jax_numpy_rank_promotion", "raise")
mpl.use("Agg")
hypothesis.settings.register_profile("ci", derandomize=True)  # the same draws in every run
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


@pytest.fixture
def key():
    """A random key."""
    return jax.random.key(0)

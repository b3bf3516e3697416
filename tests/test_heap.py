"""Memory that a program frees stays with the process, where JAX computes on CPU."""

import os
import platform
import subprocess
import sys

import pytest

from vitswin_jax.heap import PLATFORM_VARIABLES, keep_freed_memory

PROGRAM = """
import resource, statistics
from vitswin_jax.heap import keep_freed_memory
print(keep_freed_memory())
import jax, jax.numpy as jnp
side = 4096
program = jax.jit(lambda x: (x @ x.T @ x).sum())  # in 64 MB
x = jnp.ones((side, 8))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages = 4 * side * side / resource.getpagesize()
print(statistics.median([faults() for _ in range(16)]) / pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's heap that is held")
def test_the_next_call_finds_the_pages_of_the_last():
    """Without, each call faults in every page of what the program needs: the share is 1."""
    environment = {k: v for k, v in os.environ.items() if k not in PLATFORM_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    kept, share = done.stdout.split()
    assert kept == "True"
    assert float(share) < 0.1


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_accelerators_hosts_keep_their_heap(platforms, monkeypatch):
    for name in PLATFORM_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert not keep_freed_memory()

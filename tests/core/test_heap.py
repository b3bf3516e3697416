"""Memory that a process frees stays with it: all where JAX computes on CPU, else an image's."""

import os
import platform
import subprocess
import sys

import pytest

from vitswin_jax.core.heap import ASYNC_DISPATCH, PLATFORM_VARIABLES, keep_freed_memory

ON_GLIBC = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="it is glibc's heap that is held"
)
PROGRAM = """
import resource, statistics
from vitswin_jax.core.heap import keep_freed_images, keep_freed_memory
print(keep_freed_memory() and keep_freed_memory())
keep_freed_images()  # as a pipeline without workers does, which must not undo it
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
COMPILE = """
from pathlib import Path
from vitswin_jax.core import heap
heap.keep_freed_memory()
heap.LARGE = 0.0
import jax, numpy as np
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
before = resident()
freed = [np.ones(1 << 20) for _ in range(32)]  # 8 MB each
behind = bytearray(1 << 20)  # or what is freed would be the end of the heap
del freed
print(resident() - before)
jax.jit(lambda x: x + 1).lower(1.0).compile()
print(resident() - before)
"""
IMAGES = """
import resource
import numpy as np
from vitswin_jax.core.heap import keep_freed_images
keep_freed_images()
def use():
    for _ in range(300):
        both = [np.ones(600_000, np.uint8), np.ones(600_000, np.uint8)]
        del both
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(program):
    """Returns what a program of its own process prints, by words."""
    decided = {*PLATFORM_VARIABLES, ASYNC_DISPATCH.upper()}
    environment = {k: v for k, v in os.environ.items() if k not in decided}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.split()


@pytest.mark.xla_behaviour
@ON_GLIBC
def test_the_next_call_finds_the_pages_of_the_last():
    """Without, each call faults in every page of what the program needs: the share is 1."""
    kept, share = run(PROGRAM)
    assert kept == "True"
    assert float(share) < 0.1


@pytest.mark.xla_behaviour
@ON_GLIBC
def test_what_compiling_leaves_behind_is_given_back():
    """256 MB that were freed before a program was compiled stand for what the compiler used."""
    kept, left = map(int, run(COMPILE))
    assert kept > 250
    assert left < 100


@pytest.mark.xla_behaviour
@ON_GLIBC
def test_images_that_come_and_go_fault_no_pages():
    """300 times two images of 147 pages each; one page is as good as none."""
    (faults,) = run(IMAGES)
    assert int(faults) < 300


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_accelerators_hosts_keep_their_heap(platforms, monkeypatch):
    for name in PLATFORM_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert not keep_freed_memory()


def test_who_says_how_programs_are_run_is_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "true")
    assert not keep_freed_memory()

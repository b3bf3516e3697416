"""The benchmark of GPUs says in a line that there is none."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is one")
def test_without_a_gpu_it_ends_at_once():
    done = subprocess.run([sys.executable, SCRIPT], check=False, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "benchmarks/gpu.py needs a GPU, and JAX finds none here, but cpu.\n"

"""Freed memory stays with a process that asks for that."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys
import numpy as np
from vitswin_jax.data.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    for _ in range(300):
        both = [np.ones(600_000, np.uint8), np.ones(600_000, np.uint8)]
        del both
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_images_that_come_and_go_fault_no_pages():
    """300 times two images of 147 pages each; one page is as good as none."""
    command = [sys.executable, "-c", SCRIPT, "keep"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert int(done.stdout) < 300

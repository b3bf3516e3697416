"""The benchmark of loading a large model says "over" where the host needs more memory."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load_large.py"


@pytest.mark.parametrize(
    ("more", "line"),
    [(390, "3.90 tensors more, at most 4: ok"), (410, "4.10 tensors more, at most 4: over")],
)
def test_the_target_is_judged(more, line):
    found = {"loaded": 1000, "peak": 1000 + more}
    assert runpy.run_path(str(SCRIPT))["report"](found, 100).endswith(line)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_four_blocks_of_a_7b_take_what_they_are_and_four_tensors(dtype, tmp_path):
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), "--param-dtype", dtype]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert told.endswith("at most 4: ok\n"), told

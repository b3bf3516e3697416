"""The benchmark of checkpoints runs on what the trainer's checkpoints are now."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "checkpoint.py"


def test_it_measures_a_small_state():
    options = ["--model=vit_tiny_patch16_224", "--rounds=1", "--json"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout)
    assert result["bytes"] > 3 * 4 * 5_717_416  # parameters and two moments, float32
    (run,) = result["runs"]["checkpoints"]
    assert 0 < run["waited"] <= run["written"]
    assert run["restored"] > 0

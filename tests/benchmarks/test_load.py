"""The benchmark of loading says "over" where a target is missed."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load.py"


@pytest.mark.parametrize(
    ("peer", "ours", "memory", "line"),
    [
        ("np.load", 2.9, 1.9e9, "3x of np.load: ok; 2x the file: ok"),
        ("np.load", 3.1, 2.1e9, "3x of np.load: over; 2x the file: over"),
        ("safetensors", 3.9, 1.0e9, "+3 s of safetensors: ok; 2x the file: ok"),
        ("safetensors", 4.1, 1.0e9, "+3 s of safetensors: over; 2x the file: ok"),
    ],
)
def test_targets_are_judged(peer, ours, memory, line):
    runs = {
        "load_pretrained": [{"wall": ours, "cpu": ours, "memory": memory}],
        peer: [{"wall": 1.0, "cpu": 1.0, "memory": 1e9}],
    }
    result = {"format": "npz", "bytes": 10**9, "peer": peer, "runs": runs}
    assert runpy.run_path(SCRIPT)["report"]([result]).endswith(line)

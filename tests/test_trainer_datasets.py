"""Runs on a user's own data, as a script starts them: without flags and without absl.app."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitswin_jax import load_metadata
from vitswin_jax.cli import main
from vitswin_jax.core.types import UserError
from vitswin_jax.train.run.prepare import prepare

ROOT = Path(__file__).parents[1]

SCRIPT = """
import sys

from configs import digits
from vitswin_jax.trainer import train_and_evaluate

if __name__ == "__main__":  # workers import this file again
    config = digits.get_config("vit")
    config.update_from_flattened_dict({
        "model.embed_dim": 16, "model.depth": 1, "model.num_heads": 2,
        "optim.epochs": 1.0, "optim.warmup_epochs": 0.0,
        "data.dataset": sys.argv[1], "data.train_split": "train[:75%]",
        "data.test_split": "train[75%:]", "data.workers": 1,
        "data.batch_size": 8, "data.eval_batch_size": 8,
        "data.class_weights": "balanced", "loss.name": "sigmoid",
    })
    print(train_and_evaluate(config, sys.argv[2]))
"""


@pytest.fixture
def table(tmp_path):
    """A table of 40 images, each bright or dark, and some round besides."""
    rng = np.random.default_rng(0)
    lines = ["path,label,split"]
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        labels = ["bright" if i % 2 else "dark", *(["round"] if i % 3 == 0 else [])]
        lines.append(f"images/{i}.png,{';'.join(labels)},train")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path / "labels.csv"


@pytest.mark.long
def test_a_script_trains_on_several_labels_and_the_result_is_evaluated(
    table, tmp_path, environment, capsys
):
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "mine.py", table, tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("vit  test accuracy ") and "(10 images)" in done.stdout
    metadata = load_metadata(tmp_path / "run")
    assert metadata.class_names == ("bright", "dark", "round")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    tests = [row for row in map(json.loads, lines) if "test/accuracy" in row]

    weights = tmp_path / "run" / "model.safetensors"  # of which no report is written
    assert main(["evaluate", str(weights), "--batch-size", "10"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{table}:train[75%:], 10 images\n")
    assert f"{100 * tests[-1]['test/accuracy']:.2f} %" in out
    assert "mean average precision" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "labels.csv:train has several labels per image; loss.name must be 'sigmoid'."),
        ({"loss.name": "sigmoid", "data.class_weights": (1.0, 2.0)},
         "data.class_weights=(1.0, 2.0) must be None, 'balanced', or 3 numbers, 0 or more"),
        ({"loss.name": "sigmoid", "model.num_classes": 2},
         "model.num_classes=2 but "),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data_is_one_line(make_config, table, changes, message):
    config = make_config(**{"data.dataset": str(table), "data.test_split": "train"} | changes)
    with pytest.raises(UserError) as caught:
        prepare(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

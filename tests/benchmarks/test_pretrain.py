"""The benchmark of few labels: what chooses its rates, and what its table is of."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pretrain.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("pretrain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(folder):
    """The pixels of each image below a split's folder, and its class."""
    return [(np.asarray(Image.open(path)).tobytes(), path.parent.name) for path in
            folder.glob("*/*.png")]  # fmt: skip


def test_rates_are_chosen_by_training_images_that_are_neither_learned_nor_tested(
    benchmark, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark, "VALIDATED", 300)
    benchmark.write_datasets(tmp_path, "digits", seeds=2)
    everything, tested = pixels(tmp_path / "all" / "train"), pixels(tmp_path / "all" / "test")
    assert (len(everything), len(tested)) == (1347, 450)
    learned = []
    for seed in range(2):
        few, others = (pixels(tmp_path / f"few_{seed}" / name) for name in ("train", "validation"))
        assert sorted(name for _, name in few) == sorted(list("0123456789") * 10)
        assert len(others) == 300
        assert not set(few) & set(others)
        assert set(few) | set(others) < set(everything)
        learned.append(set(few))
    assert learned[0] != learned[1]
    assert not set(everything) & set(tested)


@pytest.mark.long
def test_the_table_is_of_the_test_at_the_rate_that_validation_chose(
    benchmark, tmp_path, monkeypatch
):
    """One seed of ten steps, at a rate of 0 and at one that learns; and a row as it is shown."""
    monkeypatch.setattr(benchmark, "STEPS", 10)
    monkeypatch.setattr(benchmark, "VALIDATED", 100)
    monkeypatch.setattr(benchmark, "PEAK_LRS", (0.0, 1e-2))
    benchmark.write_datasets(tmp_path, "digits", seeds=1)
    row = benchmark.measure(tmp_path, "digits", "ViT", benchmark.SCRATCH, seeds=1)
    (before,), (after,) = row["validated"].values()
    assert after > before and row["peak_lr"] == 1e-2
    (tested,) = row["tested"]
    assert tested > 0.15  # by chance: 0.1
    line = benchmark.as_table([row]).splitlines()[-1]
    shown = f"| ViT | from scratch | 0.01 | {100 * after:.1f} % | {100 * tested:.1f} % |"
    assert line == f"{shown} {100 * tested:.1f} |"

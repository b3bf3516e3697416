"""The benchmark of few labels: what chooses its rates, and what its table is of."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scripts import script


@pytest.fixture(scope="module")
def benchmark():
    with script("pretrain") as module:
        yield module


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


def test_the_table_is_of_the_test_at_the_rate_that_validation_chose(benchmark, monkeypatch):
    """The rate that tests better validates worse; two seeds."""
    monkeypatch.setattr(benchmark, "PEAK_LRS", (0.1, 0.2))
    validated = {(0.1, 0): 0.5, (0.1, 1): 0.9, (0.2, 0): 0.6, (0.2, 1): 0.7}
    tested = {(0.1, 0): 0.25, (0.1, 1): 0.75, (0.2, 0): 1.0, (0.2, 1): 1.0}

    def finetune(*_, seed, peak_lr):
        return SimpleNamespace(test_accuracy=validated[peak_lr, seed], weights=(peak_lr, seed))

    monkeypatch.setattr(benchmark, "finetune", finetune)
    monkeypatch.setattr(benchmark, "test_accuracy", lambda weights, _: tested[weights])
    row = benchmark.measure(Path("here"), "digits", "ViT", benchmark.SCRATCH, seeds=2)
    line = benchmark.as_table([row]).splitlines()[-1]
    spread = 50 / 2**0.5  # the deviation of a sample of 25 and 75
    assert line == f"| ViT | from scratch | 0.1 | 70.0 % | 50.0 ± {spread:.1f} % | 25.0, 75.0 |"

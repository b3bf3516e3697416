"""The speedrun: its images are divided once, its runs are done once, its table is their mean."""

import csv
import gzip
import json

import numpy as np
import pytest
from PIL import Image
from scripts import script

RUN = {"family": "vit", "seed": 0, "split": "validation", "length": "--minutes=30", "keys": []}
WHERE = {"machine": "M", "cores": 2, "python": "3", "jax": "0", "vitswin_jax": "1", "commit": "c"}


@pytest.fixture(scope="module")
def speedrun():
    with script("speedrun") as module:
        yield module


def rows(table):
    """A table's (pixels, label) by split."""
    found = {"train": [], "test": []}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        pixels = np.asarray(Image.open(table.parent / row["path"]))
        found[row["split"]].append((pixels.tobytes(), int(row["label"])))
    return found


def test_choosing_sees_no_test_image_and_learns_from_none_that_it_is_tested_on(speedrun, tmp_path):
    speedrun.write_noise(tmp_path / "idx")
    originals = {
        split: [
            (image.tobytes(), int(label))
            for image, label in zip(*speedrun.read_split(tmp_path / "idx", split), strict=True)
        ]
        for split in speedrun.SPLITS
    }
    chosen = []
    for folder in ("a", "b"):
        speedrun.write_images(tmp_path / "idx", tmp_path / folder, validated=32)
        final, choosing = (
            rows(tmp_path / folder / f"{kind}.csv") for kind in ("final", "choosing")
        )
        assert final == originals
        assert [len(choosing[split]) for split in ("train", "test")] == [64, 32]
        assert sorted(choosing["train"] + choosing["test"]) == sorted(originals["train"])
        chosen.append(choosing)
    assert chosen[0] == chosen[1]
    blocks = [originals["train"][i : i + 32] for i in range(65)]
    assert chosen[0]["test"] not in blocks  # shuffled


def test_idx_files_are_read_as_images_and_labels(speedrun, tmp_path):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    for part, data in (
        ("images-idx3", bytes(16) + pixels.tobytes()),
        ("labels-idx1", bytes(8) + b"\3\7"),
    ):
        (tmp_path / f"t10k-{part}-ubyte.gz").write_bytes(gzip.compress(data))
    images, labels = speedrun.read_split(tmp_path, "test")
    assert (images[1, 0, 0], images[1, 27, 27]) == (784 % 256, 1567 % 256)
    assert labels.tolist() == [3, 7]


def test_a_finished_run_is_skipped_and_any_other_is_done(speedrun, tmp_path, monkeypatch):
    done = []

    def train(run, _):
        done.append(run)
        return run | {"accuracy": 0.5}

    monkeypatch.setattr(speedrun, "train", train)
    changes = (
        {"seed": 1},
        {"split": "test"},
        {"length": "--epochs=2"},
        {"family": "swin"},
        {"keys": ["--model.depth=2"]},
    )
    others = [RUN | change for change in changes]
    first = speedrun.train_all([RUN], tmp_path)
    again = speedrun.train_all([*others, RUN], tmp_path)
    assert done == [RUN, *others]
    assert again[-1] == first[0] == RUN | {"accuracy": 0.5}
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [*first, *again[:-1]]
    assert len({speedrun.name_of(run) for run in [RUN, *others]}) == 6


def test_the_table_has_the_mean_the_spread_and_the_runs_that_took_too_long(speedrun):
    result = {"epochs": 20.0, "images": 5000, "load": 0.0, **WHERE}
    runs = [
        RUN | result | {"minutes": 29.8, "accuracy": 0.93, "flips": 0.94},
        RUN | result | {"minutes": 31.2, "accuracy": 0.95, "flips": 0.94, "seed": 1},
    ]
    lines = speedrun.table(runs)
    assert lines[2] == "| vit | 0 | 29.8 | 20.0 | validation, 5,000 | 93.00 % | 94.00 % |"
    assert lines[3] == "| vit | 1 | 31.2 (over) | 20.0 | validation, 5,000 | 95.00 % | 94.00 % |"
    assert lines[4] == f"| vit | mean of 2 | | | | 94.00 ± {2**0.5:.2f} % | 94.00 ± 0.00 % |"
    assert lines[6:] == ["M, 2 cores; vitswin_jax 1 at c, jax 0, Python 3"]
    (run,) = [runs[1] | {"length": "--epochs=20"}]
    assert "over" not in "".join(speedrun.table([run]))

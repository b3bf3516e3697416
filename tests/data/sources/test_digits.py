"""The embedded digits are scikit-learn's, and are prepared once, whole, whoever asks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from vitswin_jax.core.types import UserError
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.sources.digits import digits_directory
from vitswin_jax.data.sources.open import open_source


@pytest.mark.parametrize(("split", "count"), [("train", 1347), ("test", 450)])
def test_digits_are_scikit_learns(digits, split, count):
    source, original = digits[split], sklearn.datasets.load_digits()
    test = np.arange(1797) % 4 == 0
    chosen = test if split == "test" else ~test
    assert len(source) == count
    assert source.class_names == tuple("0123456789")
    records = [source[index] for index in range(count)]
    assert [record["label"] for record in records] == original.target[chosen].tolist()
    pixels = np.stack([decode_image(record["image"]) for record in records])
    assert pixels.shape == (count, 8, 8, 3)
    assert (pixels == pixels[..., :1]).all()
    # 0 to 16 spread over 0 to 255, so that every level can be told.
    np.testing.assert_array_equal((pixels[..., 0] / 255 * 16).round(), original.images[chosen])


def test_parity_is_the_same_digits_in_two_classes(digits, digits_root):
    parity = open_source("digits_parity", split="test", data_dir=digits_root)
    assert parity.class_names == ("even", "odd") and len(parity) == 450
    for index in range(0, 450, 50):
        two, ten = parity[index], digits["test"][index]
        assert two["image"] == ten["image"]
        assert parity.class_names[two["label"]] == ("odd" if ten["label"] % 2 else "even")


def test_splits_can_be_cut(digits_root):
    cut = open_source("digits", split="train[:10%]", data_dir=digits_root)
    assert len(cut) == 135
    assert cut.describe(12) == "digits:train[:10%][12]"


def test_default_place_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSWIN_CACHE", str(tmp_path))
    assert digits_directory() == tmp_path / "digits" / "1.0.0"
    assert len(open_source("digits", split="test")) == 450


def test_preparing_is_silent_and_leaves_nothing_behind(tmp_path, capfd):
    directory = digits_directory(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    changed = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert digits_directory(tmp_path) == directory
    assert changed == {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_two_processes_may_prepare_at_once(tmp_path):
    script = (
        "import sys; from vitswin_jax.data.sources.open import open_source\n"
        "print(len(open_source('digits', split='train', data_dir=sys.argv[1])))"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(tmp_path)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60) for process in both] == [("1347\n", "")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_half_copied_directory_is_replaced(tmp_path):
    directory = tmp_path / "digits" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "digits-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(open_source("digits", split="train", data_dir=tmp_path)) == 1347


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^digits: cannot be prepared in .*file: .*data_dir"):
        digits_directory(tmp_path / "file")

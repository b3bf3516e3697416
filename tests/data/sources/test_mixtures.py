"""Mixtures: shares that hold over any stretch, nobody left out, and the same stream again."""

from __future__ import annotations

import collections
from fractions import Fraction

import numpy as np
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.pipeline import make_eval_batches, make_train_iterator
from vitswin_jax.data.sources.labels import class_shares
from vitswin_jax.data.sources.mixtures import draw, parse_mixture
from vitswin_jax.data.sources.open import open_source


@pytest.mark.parametrize("weights", [(1,), (7, 3), (1, 1, 1), (1, 97), (5, 3, 2), (50, 30, 15, 5)])
def test_any_first_examples_have_the_shares(weights):
    counts = np.zeros(len(weights), int)
    for position in range(1000):
        part, place = draw(position, weights)
        assert place == counts[part]  # each part's own stream continues without a gap
        counts[part] += 1
        ideal = (position + 1) * np.array(weights) / sum(weights)
        assert np.abs(counts - ideal).max() < 2
        assert abs(counts[0] - ideal[0]) < 1


def test_shares_are_exact():
    parts = parse_mixture("0.1*a + 0.2 * ./b c + 3*hf:x/y:z+1")
    assert parts == (
        ("a", Fraction(1, 33)),
        ("./b c", Fraction(2, 33)),
        ("hf:x/y:z+1", Fraction(30, 33)),
    )


@pytest.fixture
def mixture(tmp_path, write_folder):
    """20 % of a folder of 9 images, 80 % of one of 14; the second's reds begin at 100."""
    write_folder(tmp_path / "one" / "train", {"a": 4, "b": 5})
    write_folder(tmp_path / "two" / "train", {"skipped": 100, "a": 2, "b": 12})
    for path in (tmp_path / "two" / "train" / "skipped").iterdir():
        path.unlink()
    (tmp_path / "two" / "train" / "skipped").rmdir()
    return f"0.2*{tmp_path}/one + 0.8*{tmp_path}/two"


ONE, TWO = range(9), range(100, 114)


def stream(dataset, count, **options):
    """Returns the reds of the first examples."""
    options = {"seed": 0, "batch_size": 5} | options
    transform = TrainTransform((4, 5), crop="none", flip=False)
    source = open_source(dataset, split="train")
    batches = make_train_iterator(
        source, transform=transform, num_batches=count // options["batch_size"], **options
    )
    return [int(red) for batch in batches for red in batch["image"][:, 0, 0, 0]]


def test_training_draws_by_the_shares_and_leaves_nobody_out(mixture):
    """Over 115 examples, 5 epochs of 23, part two gives 92 and each of its records 6 or 7."""
    shown = collections.Counter(stream(mixture, 115))
    assert sum(shown[red] for red in ONE) == 23
    assert sum(shown[red] for red in TWO) == 92
    assert {shown[red] for red in ONE} <= {2, 3}
    assert {shown[red] for red in TWO} <= {6, 7}


def test_a_part_shows_all_its_records_before_it_begins_again(mixture):
    two = [red for red in stream(mixture, 230) if red in TWO]
    for start in range(0, len(two) - 13, 14):
        assert sorted(two[start : start + 14]) == list(TWO)
    assert two[:14] != two[14:28]


def test_the_stream_is_the_seeds_and_may_be_taken_up_anywhere(mixture):
    whole = stream(mixture, 60)
    assert stream(mixture, 60) == whole != stream(mixture, 60, seed=1)
    assert stream(mixture, 40, start_batch=4) == whole[20:]
    assert stream(mixture, 60, threads=0) == whole


def test_equal_parts_are_shuffled_apart(tmp_path, write_folder):
    write_folder(tmp_path / "train", {"a": 15, "b": 15})
    shown = stream(f"1*{tmp_path} + 1*{tmp_path}", 60)
    assert shown[::2] != shown[1::2]


def test_evaluation_has_every_record_once(mixture):
    source = open_source(mixture, split="train")
    batches = make_eval_batches(source, batch_size=4, preprocess=Preprocess((4, 5)))
    reds = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    assert reds[:23].tolist() == [*ONE, *TWO]
    assert [source.label(i) for i in range(23)] == labels[:23].tolist()
    assert len({source.key(i) for i in range(23)}) == 23
    assert source.describe(22).endswith("two/train/b/113.png")


def test_a_slice_of_a_mixture_is_of_each_part(mixture):
    assert len(open_source(mixture, split="train[:50%]")) == round(4.5) + 7


def test_the_shares_of_classes_are_the_mixtures(mixture):
    shares = class_shares(open_source(mixture, split="train"))
    np.testing.assert_allclose(shares, [0.2 * 4 / 9 + 0.8 * 2 / 14, 0.2 * 5 / 9 + 0.8 * 12 / 14])


def test_parts_with_other_classes_are_refused(tmp_path, write_folder):
    write_folder(tmp_path / "one" / "train", {"a": 1, "b": 1})
    write_folder(tmp_path / "two" / "train", {"a": 1, "c": 1})
    with pytest.raises(UserError) as caught:
        open_source(f"1*{tmp_path}/one + 2*{tmp_path}/two", split="train")
    assert "two:train alone has c; " in str(caught.value)
    assert "one:train alone has b." in str(caught.value)


@pytest.mark.parametrize("text", ["0.7*a + b", "0*a + 1*b", "1*", ".*a", "1.2.3*a"])
def test_what_is_no_mixture_is_one_line(text):
    with pytest.raises(UserError, match=r"a mixture is written as WEIGHT\*DATASET"):
        open_source(text, split="train")

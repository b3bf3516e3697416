"""The streams of training and evaluation: who is shown when, on which host, and what goes wrong."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kinds import mostly_long

from vitswin_jax.core.types import UserError
from vitswin_jax.data import pipeline
from vitswin_jax.data.augment.transforms import Preprocess, TrainTransform
from vitswin_jax.data.decode import decode_image
from vitswin_jax.data.pipeline import make_eval_batches, make_train_iterator, workers_for
from vitswin_jax.data.sources.files import FileSource
from vitswin_jax.data.sources.open import open_source

PLAIN = TrainTransform((4, 5), crop="none", flip=False)  # the size of the numbered images
AUGMENTED = TrainTransform((16, 16), crop="shift", rotate=10.0, zoom=0.1)
SQUASH = Preprocess((4, 5), crop_mode="squash")


def take(source, count, **options):
    """Returns the first `count` batches, stacked."""
    options = {"batch_size": 5, "transform": PLAIN, "seed": 0} | options
    iterator = make_train_iterator(source, num_batches=count, **options)
    batches = list(iterator)
    assert len(batches) == count
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def numbers(images):
    """Returns which of the numbered images these are."""
    return images[:, 0, 0, 0].tolist()


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in ("image", "label", "mask"))


def test_batches_are_what_types_says(numbered):
    batch = next(make_train_iterator(numbered, batch_size=5, transform=PLAIN, seed=0))
    assert batch["image"].shape == (5, 4, 5, 3)
    assert batch["image"].dtype == np.uint8
    assert (batch["label"].shape, batch["label"].dtype) == ((5,), np.int32)
    assert (batch["mask"].shape, batch["mask"].dtype) == ((5,), np.float32)


def test_every_epoch_is_a_permutation_and_no_two_are_the_same(numbered):
    """Batches of 5 straddle the epochs of 23: 23 batches are exactly 5 epochs."""
    batches = take(numbered, 23)
    epochs = [numbers(batches["image"])[start : start + 23] for start in range(0, 115, 23)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
        assert epoch != list(range(23))
    for one, other in itertools.combinations(epochs, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 12
    labels = np.repeat([0, 1, 2], [9, 13, 1])
    np.testing.assert_array_equal(batches["label"], labels[numbers(batches["image"])])
    assert batches["mask"].all()


def test_seeds_differ_and_neighbours_share_no_epoch(numbered):
    """Grain shuffles epoch e by seed + e; passed on as it is, seed 1 would be seed 0 late."""
    zero, one = (numbers(take(numbered, 23, seed=seed)["image"]) for seed in (0, 1))
    epochs = [[stream[i : i + 23] for i in range(0, 115, 23)] for stream in (zero, one)]
    assert not any(epoch in epochs[1] for epoch in epochs[0])


def test_the_stream_is_pinned(numbered):
    """A run that is resumed after an upgrade must keep its order."""
    expected = [21, 2, 13, 14, 9, 7, 17, 6, 18, 3, 20, 15, 12, 11, 5]
    assert numbers(take(numbered, 3)["image"]) == expected


def test_repeats_come_in_a_row_and_an_epoch_keeps_its_length(numbered):
    """Of 23 places an epoch has, its first eight images fill 3 each but the last, as in DeiT."""
    once, thrice = (numbers(take(numbered, 23, repeats=repeats)["image"]) for repeats in (1, 3))
    for start in range(0, 115, 23):
        epoch = thrice[start : start + 23]
        assert epoch == np.repeat(once[start : start + 8], 3)[:23].tolist()


def test_each_repeat_is_augmented_anew_and_the_first_as_without(digits):
    options = {"batch_size": 12, "transform": AUGMENTED}
    once = take(digits["train"], 1, **options)["image"]
    repeated = take(digits["train"], 1, **options, repeats=3)["image"]
    np.testing.assert_array_equal(repeated[::3], once[:4])
    for copies in repeated.reshape(4, 3, -1):
        assert len({copy.tobytes() for copy in copies}) == 3
    hosts = [
        take(digits["train"], 1, **options, repeats=3, host_index=host, host_count=2)["image"]
        for host in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(hosts), repeated)


def test_no_repeats(numbered):
    with pytest.raises(UserError, match=r"^repeats=0 must be 1 \(off\) or more\.$"):
        take(numbered, 1, repeats=0)


@pytest.mark.parametrize("hosts", [2, 3, 6])
def test_hosts_share_the_stream_of_one(digits, hosts):
    options = {"batch_size": 12, "transform": AUGMENTED}
    whole = take(digits["train"], 4, **options)
    parts = [
        take(digits["train"], 4, **options, host_index=host, host_count=hosts)
        for host in range(hosts)
    ]
    for key, expected in whole.items():
        rows = [part[key].reshape(4, 12 // hosts, *expected.shape[1:]) for part in parts]
        np.testing.assert_array_equal(
            np.concatenate(rows, axis=1).reshape(expected.shape), expected
        )


@pytest.mark.parametrize("threads", mostly_long([0, 1, 5], [5]))
def test_threads_do_not_change_the_stream(digits, threads):
    options = {"batch_size": 32, "transform": AUGMENTED, "seed": 7}
    assert same(
        take(digits["train"], 6, **options, threads=threads), take(digits["train"], 6, **options)
    )


@pytest.mark.parametrize("workers", mostly_long([1, 2], [2]))
def test_workers_do_not_change_the_stream(digits, workers):
    options = {"batch_size": 32, "transform": AUGMENTED, "seed": 7}
    alone = take(digits["train"], 6, **options)
    assert same(take(digits["train"], 6, **options, workers=workers), alone)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("start", [1, 22])
def test_resuming_goes_on_where_the_unbroken_stream_would(numbered, start):
    options = {"transform": AUGMENTED, "batch_size": 6}
    unbroken, resumed = (
        take(numbered, 26, **options),
        take(numbered, 26 - start, **options, start_batch=start),
    )
    assert same({key: value[start * 6 :] for key, value in unbroken.items()}, resumed)


def test_resuming_on_another_number_of_hosts(numbered):
    unbroken = take(numbered, 9, batch_size=6)
    second = take(numbered, 4, batch_size=6, start_batch=5, host_index=1, host_count=2)
    expected = unbroken["image"].reshape(9, 6, 4, 5, 3)[5:, 3:]
    np.testing.assert_array_equal(second["image"].reshape(expected.shape), expected)


def test_augmentation_is_a_function_of_seed_epoch_and_record(numbered):
    """Each image is made again from these three alone, in another order."""
    wide = TrainTransform((9, 9), scale=(0.1, 1.0), rotate=30.0)
    order = numbers(take(numbered, 23, seed=11)["image"])
    images = take(numbered, 23, seed=11, transform=wide)["image"]
    for position in reversed(range(115)):
        epoch, record = position // 23, order[position]
        philox = np.random.Philox(key=[11, 2], counter=[0, 0, epoch, record])
        pixels = decode_image(numbered[record]["image"])
        expected = wide(pixels, np.random.Generator(philox))
        np.testing.assert_array_equal(images[position], expected)


@pytest.mark.long
def test_augmentation_differs_between_epochs(digits):
    source = digits["test"]
    first, second = (
        take(source, 18, batch_size=25, start_batch=start, transform=AUGMENTED) for start in (0, 18)
    )
    plain = [
        take(source, 18, batch_size=25, start_batch=start, transform=SQUASH_16)["image"]
        for start in (0, 18)
    ]
    where = {image.tobytes(): i for i, image in enumerate(plain[1])}
    equal = [
        np.array_equal(first["image"][i], second["image"][where[image.tobytes()]])
        for i, image in enumerate(plain[0])
    ]
    assert np.mean(equal) < 0.02


SQUASH_16 = TrainTransform((16, 16), crop="none", flip=False)


def test_the_iterator_ends_and_stays_ended(numbered):
    iterator = make_train_iterator(numbered, batch_size=5, transform=PLAIN, seed=0, num_batches=2)
    assert len(list(iterator)) == 2
    assert list(iterator) == []
    iterator.close()


def test_a_closed_iterator_ends(numbered):
    iterator = make_train_iterator(numbered, batch_size=5, transform=PLAIN, seed=0)
    next(iterator)
    iterator.close()
    assert list(iterator) == []


def collect(batches):
    """Returns the records of an evaluation, by the mask, and all masks."""
    batches = list(batches)
    real = [batch["image"][batch["mask"] == 1] for batch in batches]
    return numbers(np.concatenate(real)), [batch["mask"].tolist() for batch in batches]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 23, 64])
def test_evaluation_covers_every_record_once_and_in_order(numbered, batch_size):
    batches = make_eval_batches(numbered, batch_size=batch_size, preprocess=SQUASH)
    assert len(batches) == -(-23 // batch_size)
    for _ in range(2):  # it may be iterated over again
        found, masks = collect(batches)
        assert found == list(range(23))
        assert {len(mask) for mask in masks} == {batch_size}
        assert sum(map(sum, masks)) == 23
    *_, last = batches
    padding = last["mask"] == 0
    assert not last["image"][padding].any()
    assert not last["label"][padding].any()


def test_evaluation_on_hosts_is_that_of_one_and_has_as_many_batches(numbered):
    """Of 16 rows in two batches the second host's last are all padding."""
    hosts = [
        make_eval_batches(numbered, batch_size=16, preprocess=SQUASH, host_index=host, host_count=2)
        for host in range(2)
    ]
    assert [len(batches) for batches in hosts] == [2, 2]
    found = [collect(batches) for batches in hosts]
    assert found[0][0] == [*range(8), *range(16, 23)]
    assert found[1][0] == list(range(8, 16))
    assert found[1][1][1] == [0.0] * 8


@pytest.mark.long
def test_evaluation_by_a_worker(digits):
    preprocess = Preprocess((16, 16), crop_mode="squash")
    options = {"batch_size": 64, "preprocess": preprocess}
    alone = list(make_eval_batches(digits["test"], **options))
    shared = list(make_eval_batches(digits["test"], **options, workers=1))
    assert len(alone) == len(shared) == 8
    assert all(same(one, other) for one, other in zip(alone, shared, strict=True))


@pytest.fixture
def damaged(tmp_path, write_folder):
    """Ten images of which 003.png is cut short and 006.png is empty."""
    write_folder(tmp_path / "train", {"a": 5, "b": 5})
    cut, empty = tmp_path / "train" / "a" / "003.png", tmp_path / "train" / "b" / "006.png"
    cut.write_bytes(cut.read_bytes()[:50])
    empty.write_bytes(b"")
    return open_source(str(tmp_path), split="train")


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_stops_training_by_name(damaged, workers):
    with pytest.raises(UserError, match=r"train/(a/003|b/006)\.png: the ") as error:
        take(damaged, 4, workers=workers)
    assert "\n" not in str(error.value)  # Grain's own remarks are notes


def test_unreadable_image_stops_evaluation_by_name(damaged):
    with pytest.raises(UserError, match=r"train/a/003\.png: the image is damaged: "):
        list(make_eval_batches(damaged, batch_size=5, preprocess=SQUASH))


def test_skipped_images_are_logged_masked_and_move_no_other(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        batches = take(damaged, 4, on_unreadable="skip")
    readable = batches["mask"] == 1
    assert (~readable).sum() == 4  # two in each of two epochs
    assert not batches["image"][~readable].any()
    assert not batches["label"][~readable].any()
    messages = sorted(record.getMessage() for record in caplog.records)
    assert len(messages) == 4
    assert all("003.png" in message for message in messages[::2])
    assert "skipped in epoch 1: " in messages[-1]
    for epoch in (slice(0, 10), slice(10, 20)):
        shown = numbers(batches["image"][epoch][readable[epoch]])
        assert sorted(shown) == [0, 1, 2, 4, 5, 7, 8, 9]


def test_hosts_that_do_not_divide_the_batch(numbered):
    message = r"^batch_size=10 must be a multiple of the 4 host\(s\), above 0\.$"
    with pytest.raises(UserError, match=message):
        take(numbered, 1, batch_size=10, host_count=4)
    with pytest.raises(UserError, match=message):
        make_eval_batches(numbered, batch_size=10, preprocess=SQUASH, host_count=4)


def test_source_without_examples(tmp_path):
    empty = FileSource(tmp_path, [], ("a",), "nothing:train")
    with pytest.raises(UserError, match=r"^nothing:train: has no examples\.$"):
        take(empty, 1)


def test_negative_seed(numbered):
    with pytest.raises(UserError, match=r"^seed=-1 must be 0 or above\.$"):
        take(numbered, 1, seed=-1)


def test_unknown_treatment_of_unreadable_images(numbered):
    with pytest.raises(UserError, match="on_unreadable='ignore' must be one of raise, skip"):
        take(numbered, 1, on_unreadable="ignore")


SCRIPT = """
import multiprocessing
import sys
import time
from vitswin_jax.data.pipeline import make_train_iterator
from vitswin_jax.data.sources.open import open_source
from vitswin_jax.data.augment.transforms import TrainTransform
if __name__ == "__main__":
    source = open_source("digits", split="train", data_dir=sys.argv[1])
    transform = TrainTransform((16, 16), crop="shift")
    iterator = make_train_iterator(source, batch_size=64, transform=transform, seed=0, workers=1)
    next(iterator)
    assert "tensorflow" not in sys.modules
    (worker,) = multiprocessing.active_children()
    print(worker.pid, flush=True)
    sys.stdin.read()
    raise SystemExit(3)  # the iterator is left open
"""


@pytest.fixture
def program(digits_root, tmp_path):
    """Runs a program that waits, amid training; yields its process and its worker's number."""
    (tmp_path / "program.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "program.py"), str(digits_root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        yield process, int(process.stdout.readline())
        process.kill()


def assert_ends(pid):
    """A process is gone, or done and only waiting to be asked about."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} outlives its parent")


@pytest.mark.long
def test_a_program_that_ends_amid_training_ends_at_once_and_in_silence(program):
    """Workers, their pipes and Grain's threads are all still busy then."""
    process, worker = program
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 3
    assert_ends(worker)


@pytest.mark.long
@pytest.mark.parametrize("make", mostly_long(["train", "eval"], ["train"]))
def test_who_has_read_all_waits_for_no_worker(digits, make):
    """Of batches that are in a pipe for longer than their reader takes: no more may be in it."""
    if make == "eval":
        preprocess = Preprocess((448, 448), crop_mode="squash")
        options = {"batch_size": 150, "preprocess": preprocess, "workers": 1}
        batches = iter(make_eval_batches(digits["test"], **options))
    else:
        transform = TrainTransform((448, 448), crop="none", flip=False)
        options = {"batch_size": 128, "transform": transform, "seed": 0, "workers": 1}
        batches = make_train_iterator(digits["train"], num_batches=3, **options)
    for _ in range(3):
        next(batches)
        time.sleep(0.2)
    began = time.monotonic()
    assert next(batches, None) is None
    assert time.monotonic() - began < 10
    assert not multiprocessing.active_children()


def test_workers_of_a_killed_program_end(program):
    process, worker = program
    process.kill()
    process.wait(timeout=60)
    assert_ends(worker)


def test_reading_images_imports_neither_jax_nor_tensorflow():
    script = (
        "from vitswin_jax.data.sources import open, folders, digits\nimport sys\n"
        "from vitswin_jax.data import decode\n"
        "from vitswin_jax.data.augment import transforms\n"
        "print([name for name in ('jax', 'tensorflow', 'grain') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize(
    ("workers", "platform", "records", "processes"),
    [
        (-1, "cpu", 1_281_167, 0),
        (-1, "gpu", 1_281_167, 16),
        (-1, "tpu", 1_281_167, 16),
        (-1, "gpu", 1_347, 0),  # the digits
        (0, "gpu", 1_281_167, 0),
        (3, "cpu", 10, 3),
    ],
)
def test_workers_are_as_many_as_a_platform_needs(
    monkeypatch, workers, platform, records, processes
):
    monkeypatch.setattr(pipeline, "cores", lambda: 16)
    assert workers_for(workers, platform=platform, records=records) == processes


def test_a_host_of_many_cores_has_workers_enough(monkeypatch):
    monkeypatch.setattr(pipeline, "cores", lambda: 208)
    assert workers_for(-1, platform="tpu", records=1_281_167) == 32


def test_fewer_workers_than_automatic_are_refused():
    with pytest.raises(UserError, match=r"workers=-2 must be -1 \(automatic\), 0 .* or more"):
        workers_for(-2, platform="gpu", records=1)

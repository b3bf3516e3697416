"""The simulated week: what it would not let pass. (The week itself takes minutes.)"""

import itertools
import json
import random

import pytest
from scripts import script


@pytest.fixture(scope="module")
def week():
    with script("week") as module:
        yield module


@pytest.fixture
def make_series(week, tmp_path, monkeypatch):
    """Makes a run of batches of 4 of which each start has noted where it began and what it saw."""
    monkeypatch.setattr(week, "BATCH_SIZE", 4)

    def make_series(*starts, steps):
        series = week.Series(tmp_path / f"{len(list(tmp_path.iterdir()))}", steps)
        for number, (begin, text) in enumerate(starts):
            batches = [" ".join(text[i : i + 4]) for i in range(0, len(text), 4)]
            notes = "".join(f"{line}\n" for line in [begin, *batches])
            (series.seen / f"{number:03}").write_text(notes)
        return series

    return make_series


EPOCHS = "abcdefghij" + "dcbajihgfe" + "abcd"  # of 10 examples, over 6 batches
GOOD = [
    [(0, EPOCHS)],
    [(0, EPOCHS[:12]), (2, EPOCHS[8:])],
    [(0, EPOCHS), (1, EPOCHS[4:8]), (0, EPOCHS[:20]), (5, EPOCHS[20:])],
]


@pytest.mark.parametrize("starts", GOOD)
def test_whatever_the_starts_each_example_is_seen_once_an_epoch(week, make_series, starts):
    told = week.check_examples(make_series(*starts, steps=6))
    assert told == "2 whole epochs of 10 examples, each seen once in each"


@pytest.mark.parametrize(
    "starts",
    [
        [(0, EPOCHS[:12]), (2, EPOCHS[12:] + EPOCHS[:4])],  # a batch left out
        [(0, EPOCHS[:12]), (3, EPOCHS[8:20])],  # a batch twice
        [(0, EPOCHS[:12]), (3, EPOCHS[:12])],  # the shuffle begins again
        [(0, EPOCHS[:20])],  # the end is missing
    ],
)
def test_examples_seen_twice_or_missed_are_told(week, make_series, starts):
    with pytest.raises(ValueError, match=r"seen twice|images in"):
        week.check_examples(make_series(*starts, steps=6))


def test_a_start_behind_what_was_seen_is_told(week, make_series):
    with pytest.raises(SystemExit, match="begins at batch 4, after 3"):
        week.check_examples(make_series((0, EPOCHS[:12]), (4, EPOCHS[16:]), steps=6))


def write_run(series, losses, arrays):
    lines = [json.dumps({"step": i, "train/loss": loss}) for i, loss in enumerate(losses, 1)]
    meta = series.workdir / "checkpoints" / str(series.steps) / "meta" / "metadata"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"arrays": arrays}))
    (series.workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("losses", "checksum", "message"),
    [
        ([2.5, 2.0], 7, None),
        ([2.5, 2.0000002], 7, "losses"),
        ([2.5], 7, "losses of 1 steps"),
        ([2.5, 2.0], 8, "params/head differ"),
    ],
)
def test_exact_is_every_loss_and_every_array(week, make_series, losses, checksum, message):
    unbroken, series = make_series(steps=2), make_series(steps=2)
    write_run(unbroken, [2.5, 2.0], {"params/head": [[3], "float32", 7]})
    write_run(series, losses, {"params/head": [[3], "float32", checksum]})
    if message is None:
        assert "2 losses and 1 arrays" in week.check_exact(series, unbroken)
    else:
        with pytest.raises(ValueError, match=message):
            week.check_exact(series, unbroken)


def test_a_schedule_has_every_kind_and_moves_at_each_start(week):
    faults = week.plan_faults(random.Random(0), 25, moves=True)
    assert sorted(fault.kind for fault in faults) == sorted(5 * week.KINDS)
    places = [week.TOPOLOGIES[0], *(fault.topology for fault in faults)]
    assert all(one != then for one, then in itertools.pairwise(places))
    again = week.plan_faults(random.Random(0), 25, moves=True)
    assert faults == again and faults != week.plan_faults(random.Random(1), 25, moves=True)
    still = week.plan_faults(random.Random(0), 5, moves=False)
    assert {fault.topology for fault in still} == {week.TOPOLOGIES[0]}


@pytest.mark.parametrize("kind", ["cut off", "bit flipped", "file removed"])
def test_damage_is_of_one_file_of_the_newest_of_two(week, tmp_path, kind):
    week.damage(tmp_path / "none", kind, random.Random(0))  # killed before the first
    for step in (8, 12):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "array").write_bytes(b"\x00" * 100)
        week.damage(tmp_path, kind, random.Random(0))
    assert (tmp_path / "8" / "array").read_bytes() == b"\x00" * 100
    path = tmp_path / "12" / "array"
    content = path.read_bytes() if path.exists() else None
    assert (content is None) == (kind == "file removed")
    assert content != b"\x00" * 100

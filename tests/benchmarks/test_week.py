"""The simulated week: what it would not let pass. (The week itself takes minutes.)"""

import itertools
import json
import random
import sys

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

    def make_series(*starts, steps, hosts=1):
        series = week.Series(tmp_path / f"{len(list(tmp_path.iterdir()))}", steps)
        for number, (begin, text) in enumerate(starts):
            batches = [text[i : i + 4] for i in range(0, len(text), 4)]
            series.starts.append([])
            for host in range(hosts):
                share = 4 // hosts
                rows = [" ".join(batch[host * share :][:share]) for batch in batches]
                (series.folder / "seen" / f"{number:03}-{host}").write_text(
                    "".join(f"{line}\n" for line in [begin, *rows])
                )
                place = (series.folder, number, host, week.TWO_SLICES, steps, 0)
                series.starts[-1].append(sys.modules["week_runs"].Start(*place))
        return series

    return make_series


EPOCHS = "abcdefghij" + "dcbajihgfe" + "abcd"  # of 10 examples, over 6 batches
GOOD = [
    [(0, EPOCHS)],
    [(0, EPOCHS[:12]), (2, EPOCHS[8:])],
    [(0, EPOCHS), (1, EPOCHS[4:8]), (0, EPOCHS[:20]), (5, EPOCHS[20:])],
]


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("starts", GOOD)
def test_whatever_the_starts_each_example_is_seen_once_an_epoch(week, make_series, starts, hosts):
    told = week.check_examples(make_series(*starts, steps=6, hosts=hosts))
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


def test_a_hundred_faults_are_of_every_kind_in_three_runs(week):
    assert week.count_faults(100) == {"stays": 50, "moves": 30, "hosts": 20}
    assert week.count_faults(1) == {"stays": 1, "moves": 0, "hosts": 0}
    assert len(week.KINDS) == 10


def test_a_schedule_has_every_kind_and_moves_at_each_start(week):
    faults = week.plan_faults(random.Random(0), 30, 20, week.TOPOLOGIES)
    assert sorted(fault.kind for fault in faults) == sorted(3 * week.KINDS)
    assert all(1 <= fault.after <= 20 for fault in faults)
    places = [week.TOPOLOGIES[0], *(fault.topology for fault in faults)]
    assert all(one != then for one, then in itertools.pairwise(places))
    assert any(place.slices > 1 for place in places[1:])
    again = week.plan_faults(random.Random(0), 30, 20, week.TOPOLOGIES)
    assert faults == again
    assert faults != week.plan_faults(random.Random(1), 30, 20, week.TOPOLOGIES)
    still = week.plan_faults(random.Random(0), 5, 20, [week.TWO_HOSTS])
    assert {fault.topology for fault in still} == {week.TWO_HOSTS}


def test_more_lost_than_since_the_newest_whole_state_is_told(week):
    kept = week.check_lost([week.Loss(20, 17, 17), week.Loss(30, 24, 26)])
    assert (
        "0 steps lost beyond" in kept
        and "at most 4 of a fault, 7 in all, and those states allow 9" in kept
    )
    with pytest.raises(ValueError, match="fault 2: resumed from 23, not 24"):
        week.check_lost([week.Loss(20, 17, 17), week.Loss(30, 24, 23)])


@pytest.fixture
def states(week, tmp_path):
    """The states of a run of two hosts: checkpoints of 12 and 24, sets of 29 and 31."""
    for step in (12, 24):
        folder = tmp_path / "run" / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(b"\x00" * 100)
    for disk, host, step in itertools.product((0, 1), (0, 1), (29, 31)):
        path = tmp_path / f"host-{disk}" / "disk" / "run-0" / f"host-{host}" / f"{step}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x00" * 100)
    states = sys.modules["week_states"].States(tmp_path)
    states.note(24, week.TWO_HOSTS)
    return states


@pytest.mark.parametrize(
    ("kinds", "newest"),
    [
        ((), 31),
        (("set: bit flipped",), 29),
        (("set: cut off",), 31),  # a copy is whole
        (("set: file removed",) * 4, 29),
        (("set: file removed",) * 8, 24),
        (("disk emptied",), 31),
        (("disk emptied",) * 9, 24),
        (("disks emptied, checkpoint: file removed",), 12),
        (("disks emptied, checkpoint: file removed",) * 3, 12),  # one is always left
        (("checkpoint: cut off",), 31),
    ],
)
def test_the_newest_whole_state_after_faults(week, states, kinds, newest):
    dice = random.Random(0)
    for kind in kinds:
        states.damage(kind, dice)
    assert states.newest(week.TWO_HOSTS) == newest


def test_a_set_of_another_mesh_is_not_whole(week, states):
    assert states.newest(week.Topology(1, 1, 1, 1, 1)) == 31  # has whole arrays, as two hosts do
    assert states.newest(week.TWO_SLICES) == 24


@pytest.mark.parametrize("how", ["cut off", "bit flipped", "file removed"])
def test_damage_is_of_one_file_of_the_newest_of_two(states, tmp_path, how):
    states.damage(f"checkpoint: {how}", random.Random(0))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "12" / "array").read_bytes() == b"\x00" * 100
    path = checkpoints / "24" / "array"
    content = path.read_bytes() if path.exists() else None
    assert (content is None) == (how == "file removed")
    assert content != b"\x00" * 100


def test_a_stopwatch_counts_a_repeated_step_once(week, make_series):
    series = make_series((0, "abcd"), (2, "abcd"), steps=4)
    series.ended = 130.0
    for number, (began, seconds) in enumerate([(100.0, [3, 1, 1]), (110.0, [2, 2])]):
        now, lines = began + 4.0, [began, began + 4.0]
        for each in seconds:
            lines.append(f"{now} {now + each}")
            now += each
        (series.folder / "times" / f"{number:03}-0").write_text(
            "".join(f"{line}\n" for line in lines)
        )
    assert series.last == 4
    assert week.stopwatch(series) == (30.0, 1 + 1 + 2 + 2, 7 + 6, 1)

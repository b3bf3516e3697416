"""Goodput of lives that are written down by hand, with sums that a reader can check."""

import json

import pytest

from vitswin_jax.core.goodput import log_of, read_goodput, read_hosts, read_processes


@pytest.fixture
def write(tmp_path):
    """Writes the log of a host, and returns the workdir."""

    def write(*rows, host=0):
        path = log_of(tmp_path, host)
        path.parent.mkdir(exist_ok=True)
        text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in rows)
        path.write_text(text)
        return tmp_path

    return write


def process(began, first, *, take=((10, 10.0),), done=None):
    """A process that starts in 5 s, compiles for 2 s, and takes steps: (step, seconds) each."""
    rows = [{"step": 0, "time": began + 5, "began": began, "start": 5.0}]
    rows.append({"step": first, "time": began + 7, "from": first, "compile": 2.0})
    now = began + 7
    for step, seconds in take:
        now += seconds
        rows.append({"step": step, "time": now, "device": seconds})
    if done is not None:
        rows.append({"step": rows[-1]["step"], "time": now + 1, "save": 1.0, "ended": done})
    return rows


def test_a_run_without_a_log_has_none(tmp_path):
    assert read_goodput(tmp_path) is None


def test_a_whole_run(write):
    goodput = read_goodput(write(*process(1000.0, 0, done=1)))
    assert (goodput.total, goodput.productive, goodput.share) == (18.0, 10.0, 10 / 18)
    assert str(goodput) == (
        "55.6 %: compile 2.0 s, saves 5.6 %, starts 5.0 s, from a start to the first step 17 s"
    )


def test_steps_that_are_taken_again_are_lost_and_the_time_between_counts(write):
    """Killed at step 25 of which 20 are saved; 30 s later the next process resumes from 20."""
    before = process(1000.0, 0, take=((10, 10.0), (20, 10.0), (25, 5.0)))
    after = process(1062.0, 20, take=((21, 1.0), (40, 19.0)), done=1)
    goodput = read_goodput(write(*before, *after))
    assert goodput.total == 1062 + 28 - 1000
    assert (goodput.productive, goodput.repeated, goodput.down) == (40.0, 5.0, 30.0)
    assert (goodput.restarts, goodput.steps_repeated) == (1, 5)
    assert goodput.recoveries == [30 + 7 + 1]
    assert sum(goodput.spent.values()) + goodput.productive + goodput.repeated + 30 == 90
    assert str(goodput).startswith("44.4 %: compile 4.0 s, 1 restart, 5 steps repeated, saves 1.1")
    assert goodput.starts == [7 + 10, 7 + 1]
    assert "from a start to the first step 12 s, from a stop to the next step 38 s" in str(goodput)


def test_saves_to_hosts_own_disks_and_restarts_from_there_are_counted(write):
    before = process(0.0, 0, take=((10, 10.0),))
    before += [{"step": step, "time": 17.0 + step, "local": 1} for step in (12, 14)]
    after = process(60.0, 14, done=1)
    after[1]["local"] = 1
    goodput = read_goodput(write(*before, *after))
    assert (goodput.local_saves, goodput.local_restores) == (2, 1)
    assert "1 restart, 2 local saves, 1 local restore, " in str(goodput)


def test_of_a_row_that_a_checkpoint_divides_the_steps_before_it_are_kept(write):
    before = process(0.0, 0, take=((10, 10.0),))
    goodput = read_goodput(write(*before, *process(17.0, 4, take=((10, 6.0),))))
    assert (goodput.productive, goodput.repeated, goodput.steps_repeated) == (10.0, 6.0, 6)


def test_a_damaged_checkpoint_loses_the_steps_of_several_processes(write):
    """The second process resumes from 20, and the third, whose newest is damaged, from 10."""
    goodput = read_goodput(
        write(
            *process(0.0, 0, take=((10, 10.0), (20, 10.0))),
            *process(27.0, 20, take=((30, 10.0),)),
            *process(44.0, 10, take=((30, 20.0),), done=1),
        )
    )
    assert (goodput.productive, goodput.repeated, goodput.steps_repeated) == (30.0, 20.0, 20)


def test_what_the_first_step_takes_longer_is_compilation(write):
    goodput = read_goodput(write(*process(0.0, 0, take=((1, 5.0), (3, 4.0), (5, 4.0)))))
    assert (goodput.productive, goodput.spent["compile"]) == (10.0, 2.0 + 3.0)


def test_after_its_end_a_run_does_not_live_until_it_is_extended(write):
    whole = process(0.0, 0, done=1)
    again = process(1000.0, 10, take=(), done=1)
    workdir = write(*whole, *again)
    assert read_goodput(workdir) == read_goodput(write(*whole))
    extended = process(9000.0, 10, take=((20, 10.0),), done=1)
    goodput = read_goodput(write(*whole, *again, *extended))
    assert (goodput.total, goodput.down, goodput.restarts) == (18.0 + 18.0, 0.0, 1)


def test_a_process_that_was_killed_before_it_trained_counts(write):
    died = [{"step": 0, "time": 25.0, "began": 20.0, "start": 5.0}]
    goodput = read_goodput(write(*process(0.0, 0), *died, *process(30.0, 10, take=((20, 10.0),))))
    assert (goodput.total, goodput.down, goodput.restarts) == (47.0, 3.0 + 5.0, 2)
    assert (goodput.productive, goodput.steps_repeated) == (20.0, 0)


@pytest.mark.parametrize(
    "damage",
    ['{"step": 3, "ti', '{"step": 3, "ti\n', "\n\n", "\x00\xff{[\n", '{"time": 1}\n', "[" * 9999],
)
def test_half_a_row_and_foreign_lines_change_nothing(write, damage):
    whole = process(0.0, 0, take=((10, 10.0), (20, 10.0)), done=1)
    expected = read_goodput(write(*whole))
    assert read_goodput(write(*whole, damage)) == expected
    if damage.endswith("\n"):
        assert read_goodput(write(*whole[:3], damage, *whole[3:])) == expected


def test_times_that_cannot_be_are_left_out(write):
    rows = process(0.0, 0, done=1)
    odd = {"step": 10, "time": None, "device": -5.0, "save": 1e300, "input": None}
    assert read_goodput(write(*rows[:-1], odd, rows[-1])) == read_goodput(write(*rows))
    assert read_goodput(write(*rows, {"step": 1 << 60, "time": 1.0})) == read_goodput(write(*rows))


def test_clocks_of_two_machines_may_differ(write):
    """The second began, by its own clock, before the last row of the first."""
    goodput = read_goodput(write(*process(100.0, 0), *process(105.0, 10, take=((20, 10.0),))))
    assert (goodput.down, goodput.total, goodput.recoveries) == (0.0, 34.0, [5.0])


def test_a_lost_first_row_and_a_log_that_is_a_folder(write, tmp_path):
    rows = process(0.0, 0, done=1)
    assert read_goodput(write(*rows[1:])).productive == 10.0
    log_of(tmp_path, 0).unlink()
    log_of(tmp_path, 0).mkdir()
    assert read_goodput(tmp_path) is None and read_processes(tmp_path, 0) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (41.4, "41 s"), (7500.0, "2:05:00")]
)
def test_durations_are_short(write, seconds, text):
    rows = [{"step": 0, "time": 10_000.0, "began": 0.0, "compile": seconds}]
    assert f"compile {text}" in str(read_goodput(write(*rows)))


def test_the_hosts_of_a_run_and_where_their_time_goes(write):
    for host in range(2):
        rows = process(0.0, 0, take=((2, 8.0), (4, 8.0)))
        rows[-2] |= {"input": 4.0 * host}
        rows.insert(-1, {"step": 2, "time": 20.0, "save": 1.0})
        workdir = write(*rows, host=host)
    hosts = read_hosts(workdir)
    assert [hosts[host]["input"] for host in (0, 1)] == [[(2, 0.0), (4, 0.0)], [(2, 2.0), (4, 0.0)]]
    assert hosts[1]["save"] == [(2, 0.0), (4, 0.5)]
    log_of(workdir, 1).unlink()
    assert read_hosts(workdir) == {}


def test_of_a_long_log_some_hundred_points_are_drawn(write):
    for host in range(2):
        rows = process(0.0, 0, take=[(step, 1.0) for step in range(1, 5000)])
        workdir = write(*rows, host=host)
    points = read_hosts(workdir)[1]["device"]
    assert 200 <= len(points) < 210 and points[-1] == (4999, 1.0)

"""Where the time goes, on a clock of the test's own; and traces that XProf's format reads."""

import gzip
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.timing import InputWatch, Laps, parse_window, profiled, shares


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_every_second_is_counted_once_as_what_it_was_spent_on():
    clock = Clock()
    laps = Laps(clock)

    def batches():
        for _ in range(2):
            clock.now += 3.0
            yield "batch"

    for _ in laps.waiting(batches()):
        clock.now += 4.0
        laps.lap("device")
        clock.now += 1.0
        laps.lap("evaluate")
        clock.now += 2.0  # and then the next batch is asked for
    assert laps.turn() == {"input": 6.0, "device": 8.0, "evaluate": 2.0, "save": 4.0}
    assert set(laps.turn().values()) == {0.0}


def test_shares_of_nothing_are_nothing():
    assert shares({"input": 1.0, "device": 3.0}) == {"input": 0.25, "device": 0.75}
    assert shares({"input": 0.0}) == {"input": 0.0}


def window(*, seconds, waited):
    return {"input": waited, "device": seconds - waited, "evaluate": 0.0, "save": 0.0}


def test_a_run_that_waits_for_input_is_told_once(caplog):
    caplog.set_level(logging.WARNING, logger="vitswin_jax")
    watch = InputWatch()
    watch.see(10, window(seconds=90.0, waited=89.0))  # workers were starting
    watch.see(20, window(seconds=40.0, waited=7.9))
    watch.see(30, window(seconds=20.0, waited=18.0))  # too short to say
    assert caplog.messages == []
    watch.see(40, window(seconds=20.0, waited=2.0))
    watch.see(50, window(seconds=40.0, waited=30.0))
    (message,) = caplog.messages
    assert message.startswith("step 40: the run waited for input 50 % of the time. More data.work")


def test_a_window_is_two_numbers_of_steps():
    assert parse_window("3:7") == (3, 7)
    assert parse_window("true") == (10, 20)
    for wrong in ("7:3", "3:3", "3", "a:b", "-1:2", ""):
        with pytest.raises(UserError, match="must be START:STOP"):
            parse_window(wrong)


def steps_in(folder):
    """The numbers of the train steps that a trace has."""
    (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    assert path.with_name(path.name.replace(".trace.json.gz", ".xplane.pb")).exists()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(e["args"]["step_num"]) for e in events if e.get("name") == "train")


def take_steps(window, folder, *, count):
    @jax.jit
    def step(state):
        return state + 1, {"loss": jnp.sin(state)}

    state = jnp.zeros(())
    with profiled(step, window, folder) as traced:
        for _ in range(count):
            state, _ = traced(state)
    assert state == count


@pytest.mark.parametrize(("count", "traced"), [(6, [2, 3]), (3, [2])])
def test_a_trace_has_the_steps_of_its_window(tmp_path, count, traced):
    """And where the run ends within it, those before."""
    take_steps((2, 4), tmp_path, count=count)
    assert steps_in(tmp_path) == traced


def test_a_run_that_ends_before_the_window_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="vitswin_jax")
    take_steps((2, 4), tmp_path, count=2)
    assert caplog.messages == ["--profile=2:4: nothing was traced, for the run took 2 steps."]
    assert list(tmp_path.iterdir()) == []


def test_without_a_window_a_step_stays_as_it_is(tmp_path):
    with profiled(len, None, tmp_path) as step:
        assert step is len

"""Who holds up the others: by numbers written down by hand, and by a host that is slowed."""

import logging
import time

import pytest
from fixtures_hosts import CHANGES, end

from vitswin_jax.train.hosts.stragglers import (
    JUDGED,
    Latency,
    Pace,
    Probe,
    Stragglers,
    judge,
    parse,
)


def steps(count=10, *, input=0.0, device=0.001, save=0.0, step=0.1, compute=0.05):
    """Times of a host for some steps, in seconds per step; it waits for the rest of each."""
    wait = step - input - device - save
    return Pace(count, *(count * each for each in (input, device, save, wait)), compute)


@pytest.mark.parametrize("cause", ["input", "device", "save"])
def test_a_slow_host_is_named_with_its_cause_and_factor(cause):
    """A step takes 0.1 s, of which the host takes 0.08; without it, 0.02 s or the computation."""
    hosts = {host: steps() for host in range(4)}
    found = judge(hosts | {2: steps(**{cause: 0.081})})
    assert (found.host, found.cause) == (2, cause)
    assert found.factor == pytest.approx(0.1 / 0.05, rel=0.02)
    assert found.seconds == pytest.approx(0.081)
    faster = {host: steps(compute=0.01) for host in range(4)} | {2: steps(**{cause: 0.081})}
    assert judge(faster).factor == pytest.approx(5.0, rel=0.1)
    assert f"host 2 makes a step 2.0 times as long, by its {cause}: it " in str(found)
    assert "81 ms a step" in str(found) and "\n" not in str(found)


@pytest.mark.parametrize(
    "slow",
    [
        {"input": 0.015},  # less than a fifth of the step
        {"input": 0.06},  # while its devices are busy for longer
    ],
)
def test_a_host_that_holds_up_nobody_is_none(slow):
    assert judge({host: steps() for host in range(4)} | {1: steps(**slow)}) is None


def test_all_hosts_alike_are_no_stragglers():
    assert judge({host: steps(input=0.09) for host in range(4)}) is None


def test_a_host_of_which_every_probe_is_slow_has_slow_devices():
    hosts = {host: steps()._replace(probe=0.004, least_probe=0.003) for host in range(4)}
    assert judge(hosts) is None
    slow = hosts | {3: hosts[3]._replace(probe=0.010, least_probe=0.009)}
    found = judge(slow)
    assert (found.host, found.cause, found.factor) == (3, "device", pytest.approx(2.5))
    assert "by its device: it needs 10 ms for a product of matrices on its devices" in str(found)
    assert judge(hosts | {3: hosts[3]._replace(probe=0.010, least_probe=0.004)}) is None
    assert judge(slow | {0: steps()}) is None  # which has too few probes yet


def test_devices_are_probed_a_few_times_before_they_are_compared():
    probe = Probe()
    for _ in range(5):
        probe.measure()
    assert probe.seconds == (0.0, 0.0)
    probe.measure()
    assert 0 < probe.seconds[1] <= probe.seconds[0] < 5


def test_the_worst_of_several_is_named():
    slow = {1: steps(input=0.07, step=0.1, device=0.02), 3: steps(input=0.095)}
    assert judge({host: steps() for host in range(5)} | slow).host == 3


def test_hosts_may_have_come_to_different_steps():
    hosts = {0: steps(10), 1: steps(12, input=0.09), 2: steps(11)}
    assert judge(hosts).host == 1


def test_a_warning_comes_once_and_not_for_one_bad_moment(caplog):
    caplog.set_level(logging.WARNING, logger="vitswin_jax")
    stragglers, sums = Stragglers(), {host: steps(1) for host in range(3)}
    for number, slow in enumerate([{}, {"save": 0.09}, {}, *[{"input": 0.09}] * 4]):
        more = {0: steps(100), 1: steps(100, **slow), 2: steps(100)}
        for host, pace in more.items():
            both = zip(sums[host], pace, strict=True)
            sums[host] = Pace(*(a + b for a, b in both))._replace(compute=pace.compute)
        stragglers.see(100 * number, sums, number * JUDGED)
    (line,) = caplog.messages
    assert line.startswith("step 400: host 1 makes a step 2.0 times as long, by its input: it ")


def test_a_host_that_took_few_steps_is_judged_later(caplog):
    stragglers = Stragglers()
    for number in range(5):
        paces = {0: steps(2 + number), 1: steps(2 + number, input=0.09)}
        stragglers.see(number, paces, number * JUDGED)
    assert caplog.messages == []


def test_a_pace_travels_as_text():
    pace = steps(7, input=0.01)._replace(probe=0.25, least_probe=0.125)
    assert parse(pace.as_text()) == pytest.approx(pace, abs=1e-5)
    assert parse("") is None


def test_latency_is_the_time_to_a_result_and_holds_up_nothing():
    class Result:
        def __init__(self, seconds):
            self.seconds = seconds

        def block_until_ready(self):
            if self.seconds is None:
                raise RuntimeError("a lost host")
            time.sleep(self.seconds)

    latency, began = Latency(), time.monotonic()
    assert latency.least == 0.0
    for seconds in (0.3, 0.1, None):
        latency.measure(Result(seconds))
        if seconds is not None:
            latency.measure(Result(0.0))  # is not measured, while another one is awaited
        assert time.monotonic() - began < 0.2 or seconds != 0.3
        latency._thread.join()
    assert 0.1 <= latency.least < 0.3


SLOW = """
import dataclasses, sys, time
from vitswin_jax import cli, trainer
from vitswin_jax.train.hosts import stragglers

CAUSE = sys.argv.pop(1)

def late(function, seconds):
    def call(*args, **kwargs):
        time.sleep(seconds)
        return function(*args, **kwargs)
    return call

if CAUSE == "input":
    prepare = trainer.prepare

    def slowly(batches):
        for batch in batches:
            time.sleep(0.4)
            yield batch

    def slow(*args, **kwargs):
        run = prepare(*args, **kwargs)
        make = run.make_train_batches
        return dataclasses.replace(run, make_train_batches=lambda *ends: slowly(make(*ends)))

    trainer.prepare = slow
if CAUSE == "save":
    trainer.Checkpoints.save = late(trainer.Checkpoints.save, 1.5)
if CAUSE == "device":
    stragglers._products = late(stragglers._products, 0.3)
sys.exit(cli.main(command="train"))
"""


def warnings_of(ended):
    return [line for *_, told in ended for line in told.splitlines() if "times as long" in line]


@pytest.mark.long
@pytest.mark.parametrize("cause", ["input", "device", "save"])
def test_of_four_hosts_the_slow_one_is_named(start, tmp_path, cause):
    (tmp_path / "slow.py").write_text(SLOW)
    more = ["--config.optim.epochs=5.0", "--config.run.eval_epochs=9.0"]
    hosts = start(tmp_path / "run", 4, *CHANGES, *more, scripts={2: [tmp_path / "slow.py", cause]})
    ended = end(hosts)
    assert [status for status, *_ in ended] == [0] * 4, ended[0][2]
    (line,) = warnings_of(ended)
    assert ": host 2 makes a step " in line and f" by its {cause}: " in line
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Hosts: seconds a step for input" in page

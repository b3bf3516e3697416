"""Hosts that are stopped, doubled or badly placed: one line on each, in time, and no dump."""

import signal
import socket
import time

import pytest
from fixtures_hosts import CHANGES, end, errors, free_port, metrics_of, wait_until
from safetensors.numpy import load_file

LOST_AFTER = 5  # seconds, which `start` gives
LATE = 5  # seconds that a line may come later


def end_in_time(processes, seconds=LOST_AFTER + LATE):
    """Returns the one line of each of some hosts, which end in time."""
    began = time.monotonic()
    lines = errors(end(processes))
    assert time.monotonic() - began < seconds
    return lines


@pytest.fixture
def training(start, tmp_path):
    """Two hosts that have begun to train."""
    both = start(tmp_path / "run", 2, *CHANGES, "--config.optim.epochs=20.0")
    wait_until(both, lambda: len(metrics_of(tmp_path / "run")) > 1)
    return both


@pytest.mark.long
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_host_that_is_stopped_is_lost_and_says_so_when_it_continues(training, stopped):
    training[stopped].send_signal(signal.SIGSTOP)
    (line,) = end_in_time([training[1 - stopped]])
    assert line.startswith(f"error: lost host {stopped}; to resume from the last checkpoint,")
    training[stopped].send_signal(signal.SIGCONT)
    (line,) = end_in_time([training[stopped]])
    assert f"lost host {1 - stopped} while host {stopped} stood still for " in line


@pytest.mark.long
def test_a_host_that_is_stopped_for_a_moment_goes_on(training, tmp_path):
    for host in training:
        host.send_signal(signal.SIGSTOP)
        time.sleep(LOST_AFTER - 2)
        host.send_signal(signal.SIGCONT)
    time.sleep(LOST_AFTER + 1)
    rows = len(metrics_of(tmp_path / "run"))
    wait_until(training, lambda: len(metrics_of(tmp_path / "run")) > rows)
    assert [host.poll() for host in training] == [None, None]


@pytest.mark.long
def test_host_0_killed_is_one_line(training):
    training[0].kill()
    (line,) = end_in_time([training[1]])
    assert line.startswith("error: lost host 0; to resume from the last checkpoint, repeat the")


@pytest.mark.long
def test_a_host_that_joins_twice_ends_all_with_what_is_wrong(start, training, tmp_path):
    """Later than the others: the service sees a host that has begun anew."""
    address = next(flag for flag in training[0].args if flag.startswith("--coordinator="))
    own = [[address, "--num_hosts=2", "--host_index=1"]]
    (late,) = start(tmp_path / "run", 1, own=own)
    for line in end_in_time(training, seconds=60):  # it has to import first
        assert "two processes have joined as the same host" in line
    (line,) = end_in_time([late])
    assert "host 1 has lost the coordinator" in line


@pytest.mark.long
def test_a_taken_port_is_named_by_every_host(start, tmp_path):
    """By another program, by another host 0: gRPC would share it with the latter."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        address = f"--coordinator=127.0.0.1:{other.getsockname()[1]}"
        own = [[address, "--num_hosts=2", f"--host_index={host}"] for host in (0, 1)]
        first, second = errors(end(start(tmp_path / "run", 2, own=own)))
    assert "the coordinator's port" in first and "is taken on this machine" in first
    assert "host 1 finds another program at the coordinator's port" in second


@pytest.mark.long
def test_of_two_hosts_0_one_has_the_port(start, tmp_path):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    own = [[address, "--num_hosts=2", "--host_index=0", "--join_timeout=15"]] * 2
    lines = sorted(errors(end(start(tmp_path / "run", 2, own=own))))
    assert "host 0 waited 15 s" in lines[0] and "process with --host_index=0" in lines[1]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_one_host_stops_all_at_one_step(start, training, tmp_path, number):
    training[1].send_signal(number)
    ended = end(training)
    last = [told.strip().splitlines()[-1] for *_, told in ended]
    assert [status for status, *_ in ended] == [128 + number] * 2, last
    assert last[0] == last[1] and "at step" in last[0], last
    step = last[0].split(" at step ")[1].split()[0]
    assert (tmp_path / "run" / "checkpoints" / step).is_dir()


@pytest.mark.long
def test_hosts_that_were_stopped_and_killed_end_bit_for_bit_as_unbroken_ones(start, tmp_path):
    run = tmp_path / "run"
    for fault in (signal.SIGSTOP, signal.SIGINT):
        both = start(run, 2, *CHANGES)
        rows = len(metrics_of(run))
        wait_until(both, lambda: len(metrics_of(run)) > rows)  # noqa: B023
        both[0].send_signal(fault)
        end(both[1:])
        both[0].send_signal(signal.SIGCONT)
        end(both[:1])
    for workdir in (run, tmp_path / "whole"):
        assert [status for status, *_ in end(start(workdir, 2, *CHANGES))] == [0, 0]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all((array == theirs[name]).all() for name, array in ours.items())

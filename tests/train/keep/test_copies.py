"""A neighbour is not lost together with its host, and what it does not keep is one warning.

Of one process, the neighbour is the process itself, through its own depot.
"""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from fixtures_hosts import end, free_port
from fixtures_train import ROOT
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vitswin_jax.train.keep import copies
from vitswin_jax.train.keep.copies import Copies, neighbours
from vitswin_jax.train.keep.whole import Found, Held, path_in, steps_of, weigh
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import TrainState


@pytest.mark.parametrize(
    ("slices", "machines", "keepers"),
    [
        ([0, 0, 0], "abc", [1, 2, 0]),
        ([0, 0, 1, 1], "abcd", [2, 3, 0, 1]),
        ([0, 1, 0, 1, 2, 2], "abcdef", [1, 4, 3, 5, 0, 2]),
        ([0, 0, 0, 0], "aabb", [2, 3, 0, 1]),
        ([0, 0, 0], "aab", [2, 2, 0]),
        ([0, 0], "aa", [1, 0]),
        ([0, 0, 1, 1], "aaaa", [2, 3, 0, 1]),
    ],
)
def test_a_neighbour_is_of_the_next_slice_machine_or_host(slices, machines, keepers):
    assert neighbours(slices, machines) == keepers


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """The copies of a run whose only host is its own neighbour."""
    here = SimpleNamespace(own_ip=lambda: "127.0.0.1")
    monkeypatch.setattr(copies.watch, "current", here)
    sharding = NamedSharding(create_mesh(fsdp=2), P("fsdp"))
    kernel = jax.ShapeDtypeStruct((16, 8), np.float32, sharding=sharding)
    opened = Copies(tmp_path / "run", TrainState(np.int32(0), {"kernel": kernel}, {}, None))
    yield opened
    opened.close()


def offer(opened, tmp_path, *steps, size=100):
    """Offers sets one after the other, each when the one before was tried."""
    for step in steps:
        path = tmp_path / f"{step}.safetensors"
        path.write_bytes(b"x" * size)
        opened.offer(step, path)
        deadline = time.monotonic() + 10
        while not opened.idle:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_the_newest_two_are_kept_and_come_back(opened, tmp_path, caplog):
    offer(opened, tmp_path, 3, 4, 5)
    assert sorted(steps_of(tmp_path / "run" / "host-0")) == [4, 5]
    back = tmp_path / "back" / "5.safetensors"
    assert opened.fetch(Found(5, "", back, {0: (0, 0)})) == ""
    assert back.read_bytes() == b"x" * 100 and not warnings(caplog)
    why = opened.fetch(Found(3, "", back, {0: (0, 0)}))
    assert why == "cannot be had from host 0: No such file or directory"


def test_a_neighbour_that_refuses_is_one_warning(opened, tmp_path, caplog):
    offer(opened, tmp_path, 3, 4, 5, size=opened._limit + 1)
    (line,) = warnings(caplog)
    assert line.startswith("local set of step 3: host 0, which keeps the copies of host 0, has ")
    assert "are more than a set of host 0 can have; training continues" in line


def test_a_dead_neighbour_is_one_warning_if_it_stays_dead(opened, tmp_path, caplog, monkeypatch):
    opened._depot.close()
    offer(opened, tmp_path, 3, 4)
    assert not warnings(caplog)
    monkeypatch.setattr(copies, "PATIENCE", 0.0)
    offer(opened, tmp_path, 5, 6)
    (line,) = warnings(caplog)
    assert line.startswith("local set of step 5: host 0, ") and "Connection refused" in line


def test_a_host_that_cannot_listen_keeps_none(opened, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(copies.watch.current, "own_ip", lambda: "192.0.2.1")  # nobody's
    assert copies._open(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "shared", "expected"),
    [
        ([[Held(0, "", "a", 7)], [Held(1, "", "b", 7)]], True, ("", {0: 0, 1: 1}, {})),
        ([[Held(0, "", "a", 7), Held(1, "", "b", 7)], []], True, ("", {0: 0}, {1: (0, 1)})),
        (
            [[Held(0, "", "a", 7), Held(1, "", "b", 7)], []],
            False,
            ("host 1: it is missing", {0: 0}, {}),
        ),
        ([[Held(0, "", "a", 7)], [Held(0, "", "a", 7)]], True,
         ("host 1: it does not have this host's parts", {0: 0}, {})),
        ([[Held(0, "is damaged")], [Held(0, "", "a", 7), Held(1, "", "b", 7)]], True,
         ("", {1: 1}, {0: (1, 0)})),
        ([[Held(0, "", "a", 7), Held(1, "", "b", 8)], []], True,
         ("the hosts have different ones", {0: 0}, {})),
        ([[Held(0, "", "a", 7), Held(1, "is damaged")], []], True,
         ("host 1: it is missing", {0: 0}, {})),
    ],
)  # fmt: skip
def test_a_set_is_whole_if_each_host_has_or_gets_its_parts(files, shared, expected):
    assert weigh(["a", "b"], files, shared=shared) == expected


@pytest.mark.parametrize("host_0_saved", [Held(0, "", "b", 7), Held(0, "is damaged"), None])
def test_a_set_that_host_0_had_not_saved_is_not_used(host_0_saved):
    """Its metrics may not be written, even where each host has all parts of the state."""
    others = [Held(1, "", "a", 7)]
    files = [others, [*others, host_0_saved]] if host_0_saved else [others, others]
    reason, _, _ = weigh(["a", "a"], files, shared=True)
    usable = host_0_saved is not None and not host_0_saved.fault
    assert reason == ("" if usable else "host 0, which writes the metrics, had not saved it")


def test_a_path_has_the_host_and_the_step(tmp_path):
    assert path_in(tmp_path, 3, 40) == tmp_path / "host-3" / "40.safetensors"


def test_a_host_whose_disk_is_lost_gets_its_set_from_the_other_slice(tmp_path):
    """Two processes, each of them a slice."""
    script = [sys.executable, ROOT / "tests" / "host_with_sets.py", f"127.0.0.1:{free_port()}"]
    both = [
        subprocess.Popen(
            [*script, str(host), tmp_path / str(host)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        )
        for host in (0, 1)
    ]
    for status, _, told in end(both, timeout=60):
        assert status == 0, told
        assert "local set of step 3: used, from " in told, told
        assert "; host 1 has its part from host 0." in told, told
    kept = [sorted(path.name for path in tmp_path.glob(f"{host}/*/*")) for host in (0, 1)]
    assert kept == [["host-0", "host-1"], ["host-1"]]

"""A depot takes files from who knows its secret, whole and no larger than they may be."""

import os
import socket
import threading
import time

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts import neighbour
from vitswin_jax.train.hosts.neighbour import Depot, Peer, RefusedError, get, put

PATIENCE = 0.3
SIZE = 3 * (1 << 20) + 5  # more than a chunk


@pytest.fixture
def depot(tmp_path):
    """A depot that keeps up to `SIZE` bytes of host 1; `depot.kept` has what it was called with."""
    kept = []
    depot = Depot(
        "127.0.0.1",
        lambda host, step: tmp_path / "there" / f"{host}-{step}",
        kept.append,
        patience=PATIENCE,
    )
    depot.limits, depot.kept = {1: SIZE}, kept
    yield depot
    depot.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "here"
    path.write_bytes(os.urandom(SIZE))
    return path


def there(tmp_path):
    """Names of all files at the depot, temporary ones too."""
    return sorted(path.name for path in (tmp_path / "there").glob("*"))


def wait_for_the_end(depot):
    """Waits until the depot has no connection."""
    for thread in list(depot._clients):
        thread.join(10)


def test_a_file_goes_there_and_comes_back(depot, file, tmp_path):
    put(depot.peer, file, host=1, step=7)
    get(depot.peer, tmp_path / "back", host=1, step=7, limit=SIZE)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert there(tmp_path) == ["1-7"] and depot.kept == [1]


def test_what_is_there_is_not_sent_again(depot, file, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "1-7").write_bytes(b"x" * SIZE)  # as of two hosts with one disk
    put(depot.peer, file, host=1, step=7)
    assert depot.kept == []


@pytest.mark.parametrize("said", [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x14" + b"x" * 99])
def test_a_stranger_is_cut_off_and_nothing_is_written(depot, tmp_path, said):
    name, port = depot.peer.address.split(":")
    begun = time.monotonic()
    with socket.create_connection((name, int(port)), timeout=10) as stranger:
        stranger.sendall(said)
        heard = b""
        while chunk := _received(stranger):
            heard += chunk
    assert time.monotonic() - begun < 10 * PATIENCE
    assert len(heard) < 200  # the challenge, and that the answer is wrong
    wait_for_the_end(depot)
    assert there(tmp_path) == []


def _received(stranger):
    try:
        return stranger.recv(4096)
    except ConnectionResetError:
        return b""


def test_a_stranger_who_trickles_is_cut_off_too(depot):
    name, port = depot.peer.address.split(":")
    begun = time.monotonic()
    with socket.create_connection((name, int(port)), timeout=10) as stranger:
        stranger.sendall(b"\0\0\0\xff")
        with pytest.raises(OSError):
            while time.monotonic() - begun < 10:
                stranger.sendall(b"x")
                time.sleep(PATIENCE / 4)


def test_another_secret_is_refused_on_either_side(depot, file, tmp_path):
    with pytest.raises(RefusedError, match="another secret"):
        put(Peer(depot.peer.address, "0" * 64), file, host=1, step=7)
    with pytest.raises(RefusedError, match="another secret"):
        get(Peer(depot.peer.address, "0" * 64), tmp_path / "back", host=1, step=7, limit=9)
    assert there(tmp_path) == [] and not (tmp_path / "back").exists()


def test_another_hosts_file_and_one_too_large_are_refused(depot, file, tmp_path):
    with pytest.raises(RefusedError, match="it keeps no sets of host 2"):
        put(depot.peer, file, host=2, step=7)
    with file.open("ab") as larger:
        larger.write(b"x")
    with pytest.raises(RefusedError, match=r"3,145,734 bytes are more than a set of host 1"):
        put(depot.peer, file, host=1, step=7)
    assert there(tmp_path) == []


def test_more_bytes_than_were_announced_are_not_kept(depot, file, tmp_path, monkeypatch):
    def pour(connection, file, size):
        connection.send_bytes(b"x" * (size + 1))

    monkeypatch.setattr(neighbour, "_pour", pour)
    file.write_bytes(b"x" * 100)
    with pytest.raises(RefusedError, match="bad message length"):
        put(depot.peer, file, host=1, step=7)
    wait_for_the_end(depot)
    assert there(tmp_path) == []


@pytest.mark.parametrize("fault", ["cut off", "changed", "silent"])
def test_a_file_that_does_not_come_whole_is_not_kept(depot, file, tmp_path, monkeypatch, fault):
    def pour(connection, file, size):
        while chunk := file.read(1 << 20):
            last = len(chunk) < 1 << 20
            if last and fault == "cut off":
                raise ConnectionError
            if last and fault == "silent":
                time.sleep(2 * PATIENCE)
            connection.send_bytes(chunk)
        neighbour._say(connection, crc=1)

    monkeypatch.setattr(neighbour, "_pour", pour)
    with pytest.raises((OSError, RefusedError)):
        put(depot.peer, file, host=1, step=7)
    wait_for_the_end(depot)
    assert there(tmp_path) == [] and depot.kept == []
    monkeypatch.undo()
    put(depot.peer, file, host=1, step=7)
    assert there(tmp_path) == ["1-7"]


def test_a_full_disk_is_told_to_the_sender(depot, file, tmp_path):
    depot._path_of = lambda host, step: _full(tmp_path)
    with pytest.raises(RefusedError, match="No space left on device"):
        put(depot.peer, file, host=1, step=7)


def test_a_place_that_cannot_be_written_is_told_before_a_byte_is_sent(
    depot, file, tmp_path, monkeypatch
):
    (tmp_path / "there").touch()
    depot._path_of = lambda host, step: tmp_path / "there" / "host-1" / "7"
    monkeypatch.setattr(neighbour, "_pour", _broken)
    with pytest.raises(RefusedError, match=r"^Not a directory$"):
        put(depot.peer, file, host=1, step=7)


def _full(tmp_path):
    """A path in a folder whose temporary file is the device that is always full."""
    folder = tmp_path / "full"
    folder.mkdir(exist_ok=True)
    temporary = folder / f".set.{os.getpid()}.tmp"
    if not temporary.is_symlink():
        temporary.symlink_to("/dev/full")
    return folder / "set"


def test_what_is_not_there_cannot_be_had_and_what_is_too_large_is_not_read(
    depot, file, tmp_path, monkeypatch
):
    back = tmp_path / "back"
    with pytest.raises(RefusedError, match="No such file"):
        get(depot.peer, back, host=1, step=8, limit=SIZE)
    put(depot.peer, file, host=1, step=7)
    with pytest.raises(RefusedError, match="too large"):
        get(depot.peer, back, host=1, step=7, limit=SIZE - 1)
    monkeypatch.setattr(neighbour, "_fill", _broken)
    with pytest.raises(RefusedError, match="the connection broke"):
        get(depot.peer, back, host=1, step=7, limit=SIZE)
    assert not back.exists()


def _broken(*_):
    raise EOFError


def test_a_dead_or_silent_host_is_an_error_in_time(file):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer(f"127.0.0.1:{silent.getsockname()[1]}", "0" * 64)
        begun = time.monotonic()
        with pytest.raises(OSError):
            put(peer, file, host=1, step=7, patience=PATIENCE)
        assert time.monotonic() - begun < 10 * PATIENCE
    with pytest.raises(OSError):
        put(peer, file, host=1, step=7)
    with pytest.raises(RefusedError, match="cannot listen"):
        put(Peer("", ""), file, host=1, step=7)


def test_a_depot_ends_its_connections(depot, file, tmp_path):
    name, port = depot.peer.address.split(":")
    with socket.create_connection((name, int(port)), timeout=10):
        depot.close()
    assert not depot._clients
    with pytest.raises(OSError):
        put(depot.peer, file, host=1, step=7)


def test_many_hosts_are_served_at_once(depot, file, tmp_path):
    depot.limits = dict.fromkeys(range(12), SIZE)
    puts = [
        threading.Thread(target=put, args=(depot.peer, file), kwargs={"host": host, "step": 1})
        for host in range(12)
    ]
    for each in puts:
        each.start()
    for each in puts:
        each.join(30)
    assert len(there(tmp_path)) == 12


def test_a_place_that_cannot_be_written_names_it(depot, file, tmp_path):
    put(depot.peer, file, host=1, step=7)
    with pytest.raises(UserError, match="cannot write"):
        get(depot.peer, tmp_path / "none" / "back", host=1, step=7, limit=SIZE)

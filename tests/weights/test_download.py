"""Downloads over HTTP from this machine: whole, checked, continued, shared; faults are one line."""

import hashlib
import json
import shutil
import socket
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from web_server import serving

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.download import fetch, has_digest, read_address

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
FILES = {"/a.npz": BODY}


def names(folder):
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize(
    "digest",
    [None, f"sha256:{SHA256[:8]}", f"sha256:{SHA256}", "md5:" + hashlib.md5(BODY).hexdigest()],
)
def test_a_file_arrives_once_with_its_record(tmp_path, digest):
    path = tmp_path / "more" / "a.npz"
    with serving(FILES) as site:
        record = fetch(f"{site.address}/a.npz", path, digest=digest)
        assert record == {"address": f"{site.address}/a.npz", "size": len(BODY), "sha256": SHA256}
        assert path.read_bytes() == BODY
        assert fetch(f"{site.address}/a.npz", path, digest=digest) == record
        assert site.asked == [None]
    assert fetch(record["address"], path, digest=digest) == record  # the server is gone
    assert json.loads((tmp_path / "more" / "a.npz.json").read_text()) == record
    assert names(path.parent) == {"a.npz", "a.npz.json"}


def test_a_broken_connection_goes_on_where_it_broke(tmp_path):
    with serving(FILES, cuts=[1_000_000, 500_000]) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert site.asked == [None, "bytes=1000000-", "bytes=1500000-"]
    assert (tmp_path / "a.npz").read_bytes() == BODY


def test_a_server_without_ranges_begins_anew(tmp_path):
    path = tmp_path / "a.npz"
    with serving(FILES, ranges=False, cuts=[1_000_000]) as site:
        fetch(f"{site.address}/a.npz", path)
        assert site.asked == [None, "bytes=1000000-"]
    assert path.read_bytes() == BODY


def test_a_connection_that_breaks_ever_earlier_is_given_up(tmp_path):
    path = tmp_path / "a.npz"
    broke = pytest.raises(UserError, match="broke after 500,000 bytes; try again")
    with serving(FILES, ranges=False, cuts=[1_000_000, 500_000]) as site, broke:
        fetch(f"{site.address}/a.npz", path)
    assert not path.exists()


def test_a_later_call_goes_on_but_never_into_another_file(tmp_path):
    path = tmp_path / "a.npz"
    for etag, resumed in (('"1"', True), ('"2"', False)):
        with serving(FILES, cuts=[2_000_000, 0]) as site:
            with pytest.raises(UserError, match="broke after 2,000,000 bytes"):
                fetch(f"{site.address}/a.npz", path)
            site.etag = etag
            site.files = FILES if resumed else {"/a.npz": BODY[::-1]}
            fetch(f"{site.address}/a.npz", path)
        assert path.read_bytes() == (BODY if resumed else BODY[::-1])
        path.unlink()
        (tmp_path / "a.npz.json").unlink()


def test_all_was_there_but_the_last_step(tmp_path):
    """Interrupted between the last byte and the new name: the server has nothing more to give."""
    (tmp_path / ".a.npz.part").write_bytes(BODY)
    (tmp_path / ".a.npz.part.version").write_text('"1"')
    with serving(FILES) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz", digest=f"sha256:{SHA256}")
        assert site.asked == [f"bytes={len(BODY)}-", None]


def test_a_server_that_tells_neither_length_nor_version(tmp_path):
    with serving(FILES, length=False, etag=None) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz", digest=f"sha256:{SHA256}")
    assert (tmp_path / "a.npz").read_bytes() == BODY


def test_wrong_bytes_are_removed(tmp_path):
    with serving({"/a.npz": BODY[::-1]}) as site, pytest.raises(UserError) as error:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz", digest=f"sha256:{SHA256[:8]}")
    found = hashlib.sha256(BODY[::-1]).hexdigest()[:8]
    assert f"has the sha256 {found}..., not {SHA256[:8]}... as published" in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == set()


def test_faults_are_one_line(tmp_path, monkeypatch):
    with (
        serving(FILES) as site,
        pytest.raises(UserError, match=r"/b\.npz: the server answers 404 Not"),
    ):
        fetch(f"{site.address}/b.npz", tmp_path / "b.npz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.npz"
    with pytest.raises(
        UserError, match=r"cannot be reached \(Connection refused\); .* put the file"
    ) as e:
        fetch(address, tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(e.value)
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with serving(FILES) as site, pytest.raises(UserError, match="3,000,000 bytes more do not fit"):
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: (Not a directory|File exists)"):
        fetch(address, tmp_path / "file" / "a.npz")
    assert names(tmp_path) == {"file"}


def test_a_file_put_there_by_hand(tmp_path):
    path, address = tmp_path / "a.npz", "http://127.0.0.1:1/a.npz"
    path.write_bytes(BODY)
    assert fetch(address, path, digest=f"sha256:{SHA256[:8]}")["sha256"] == SHA256
    path.write_bytes(BODY[:-1])  # changed since
    with pytest.raises(UserError, match=r"a\.npz: has the sha256 .* by http://.*; remove it"):
        fetch(address, path, digest=f"sha256:{SHA256[:8]}")
    with pytest.raises(
        UserError, match=r"has 2,999,999 bytes, but had 3,000,000 when it was downloaded"
    ):
        fetch(address, path)
    assert path.read_bytes() == BODY[:-1]
    assert has_digest(path, "md5:" + hashlib.md5(BODY[:-1]).hexdigest()[:6])


def test_who_asks_at_once_waits_for_one_download(tmp_path):
    """Threads here: the lock is on a file that each opens for itself, as processes do."""
    path = tmp_path / "a.npz"
    with serving(FILES, delay=0.3) as site, ThreadPoolExecutor(4) as pool:
        address = f"{site.address}/a.npz"
        records = list(pool.map(lambda _: fetch(address, path), range(4)))
        assert site.asked == [None]
    assert {record["sha256"] for record in records} == {SHA256}
    assert path.read_bytes() == BODY


def test_progress_is_shown_on_a_terminal_only(tmp_path, capsys):
    with serving(FILES) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("length", [True, False])
def test_what_is_read_is_whole_and_not_too_large(length):
    with serving(FILES, length=length) as site:
        address = f"{site.address}/a.npz"
        assert read_address(address, at_most=len(BODY)) == BODY
        with pytest.raises(UserError, match=r"a\.npz: is larger than the 2,999,999 bytes"):
            read_address(address, at_most=len(BODY) - 1)


def test_faults_of_what_is_read():
    with serving(FILES, cuts=[1000]) as site:
        with pytest.raises(UserError, match="broke after 1,000 of 3,000,000 bytes"):
            read_address(f"{site.address}/a.npz", at_most=len(BODY))
        with pytest.raises(UserError, match=r"none: the server answers 404 Not Found\."):
            read_address(f"{site.address}/none", at_most=len(BODY))
        gone = site.address
    with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\)\."):
        read_address(f"{gone}/a.npz", at_most=1)
    with pytest.raises(UserError, match="http://a b/c: is not an address"):
        read_address("http://a b/c", at_most=1)

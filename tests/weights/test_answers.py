"""Answers of servers that are wrong, hostile or slow: a right file or one line, and never for ever.

Each answer goes through both ways in, a file that is kept and bytes that are not.
"""

import base64
import hashlib
import itertools
import logging
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from web_server import serving

from vitswin_jax.core.types import UserError
from vitswin_jax.weights import connections, download
from vitswin_jax.weights.download import fetch, read_address

BODY = np.random.default_rng(0).bytes(300_000)
FILES = {"/a.npz": BODY}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def head(status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Endless(list):
    """What a server sends, of which the last part is sent again and again."""

    def __iter__(self):
        return itertools.chain(super().__iter__(), itertools.repeat(self[-1]))


def refusals(raw, tmp_path, path="/a.npz", **limits):
    """The lines with which both ways in refuse an answer; nothing is kept under the file's name."""
    with serving({}, raw={path: raw}) as site:
        address = f"{site.address}{path}"
        with pytest.raises(UserError) as kept:
            fetch(address, tmp_path / "a.npz", **limits)
        with pytest.raises(UserError) as read:
            read_address(address, at_most=limits.get("at_most", 1 << 20))
    assert not (tmp_path / "a.npz").exists()
    lines = [str(kept.value), str(read.value)]
    for line in lines:
        assert line.startswith(f"{address}: ")
        assert line.isprintable()
        assert len(line) < 400
    return lines


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (head("204 No Content"), "answers 204 No Content and no file"),
        (head("202 Accepted", Content_Length=5) + b"later", "answers 202 Accepted and no file"),
        (head("206 Partial Content", Content_Range="bytes 0-4/5", Content_Length=5) + b"bytes",
         "answers 206 Partial Content and no file"),
        (head("299 " + "x" * 1000), "answers 299 x"),
        (head("300 Multiple Choices"), "answers 300 Multiple Choices"),
        (head("304 Not Modified"), "answers 304 Not Modified"),
        (head("302 Found"), "answers 302 Found without a place to go"),
        (head("503 "), "answers 503 Service Unavailable"),
        (head("503 \x1b[2J"), r"answers 503 \x1b"),
        (head(Content_Encoding="gzip", Content_Length=5) + b"bytes", "Content-Encoding 'gzip'"),
        (head(Content_Encoding="br") + b"bytes", "Content-Encoding 'br'"),
        (head(Transfer_Encoding="gzip, chunked") + b"5\r\nbytes\r\n0\r\n\r\n", "'gzip, chunked'"),
        (head(Content_Length="-5") + b"bytes", "Content-Length '-5': no size"),
        (head(Content_Length="5.0") + b"bytes", "Content-Length '5.0': no size"),
        (head(Content_Length="five") + b"bytes", "Content-Length 'five': no size"),
        (head(Content_Length="") + b"bytes", "Content-Length '': no size"),
        (head(Content_Length="9" * 5000) + b"bytes", "no size"),
        (head(Content_Length="5, 6") + b"bytes", "'5, 6': no size"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nbytes", "'5, 4'"),
        (head(Content_Length=5, Transfer_Encoding="chunked") + b"5\r\nbytes\r\n0\r\n\r\n",
         "states a Content-Length, and sends chunks"),
        (head(Content_Length=9) + b"bytes", "connection broke"),
        (head(Transfer_Encoding="chunked") + b"5\r\nbytes\r\n", "connection broke"),
        (head(Transfer_Encoding="chunked") + b"-5\r\nbytes\r\n0\r\n\r\n", "connection broke"),
        (head(Transfer_Encoding="chunked") + b"five\r\nbytes\r\n0\r\n\r\n", "connection broke"),
        (b"", "cannot be reached (the server closed it)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "what the server sends is not HTTP"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "what the server sends is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n", "what the server sends is not HTTP"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n", "sends is not HTTP"),
        (head(Content_Length=20_000_000_000), "is larger than the "),
    ],
)  # fmt: skip
def test_what_is_no_file_is_one_line(answer, line, tmp_path):
    for refusal in refusals([answer], tmp_path):
        assert line in refusal


def test_equal_lengths_are_one():
    raw = {"/": [head(Content_Length="5, 5") + b"bytes and more"]}
    with serving({}, raw=raw) as site:
        assert read_address(f"{site.address}/", at_most=99) == b"bytes"


def test_a_web_page_is_no_weights_file(tmp_path):
    page = head(Content_Type="text/html; charset=utf-8", Content_Length=6) + b"<html>"
    with (
        serving({}, raw={"/a.npz": [page]}) as site,
        pytest.raises(UserError, match="sends a web page, not a file; does the network ask"),
    ):
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize(
    ("location", "line"),
    [
        ("/a.npz", "is redirected in a circle, at last to http://127"),
        ("ftp://127.0.0.1/a.npz", "is redirected to ftp://127.0.0.1/a.npz, and only http and"),
        ("file:///etc/passwd", "is redirected to file:///etc/passwd, and only http and https"),
        ("data:,abc", "is redirected to data:,abc, and only"),
        ("gopher://x/\r\n y", "is redirected to gopher://x/"),
        ("http://[::1", "is redirected to http://[::1: no address"),
        ("http://", "is redirected"),
        ("http:///a.npz", "is redirected"),
        ("http://127.0.0.1:port/", "is redirected"),
    ],
)
def test_redirects_that_lead_nowhere(location, line, tmp_path):
    for refusal in refusals([head("302 Found", Location=location)], tmp_path):
        assert line in refusal


def test_too_many_redirects(tmp_path):
    steps = {f"/{i}": [head("307 Go on", Location=f"/{i + 1}")] for i in range(100)}
    with (
        serving({}, raw=steps) as site,
        pytest.raises(UserError, match=r"/0: is redirected more than 10 times, at last to .*/11"),
    ):
        fetch(f"{site.address}/0", tmp_path / "a.npz")
    assert len(site.asked) == 11


def test_a_redirect_is_followed_and_its_body_is_not_read(tmp_path):
    endless = Endless([head("301 Moved", Location="a.npz"), b"x" * 4096])
    with serving(FILES, raw={"/old": endless}) as site:
        fetch(f"{site.address}/old", tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == BODY


CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""A self-signed certificate for a hundred years, and its key: for a test's own server."""


def test_a_certificate_that_is_not_trusted(tmp_path, monkeypatch):
    with serving(FILES, certificate=CERTIFICATE) as site:
        with pytest.raises(
            UserError, match=r"its certificate is not trusted: .*self.signed"
        ) as error:
            fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert len(str(error.value)) < 500
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))  # as the line says
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == BODY


def test_never_from_https_to_http(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with serving(FILES) as plain, serving({}, certificate=CERTIFICATE) as site:
        target = f"{plain.address}/a.npz"
        site.raw = {
            "/to-http": [head("302 Found", Location=target)],
            "/to-https": [head("302 Found", Location="/end")],
            "/end": [head(Content_Length=5) + b"bytes"],
        }
        with pytest.raises(UserError, match=r"redirected to http:.*, and only https addr"):
            fetch(f"{site.address}/to-http", tmp_path / "a.npz")
        assert read_address(f"{site.address}/to-https", at_most=9) == b"bytes"
        plain.raw = {"/up": [head("302 Found", Location=f"{site.address}/end")]}
        assert read_address(f"{plain.address}/up", at_most=9) == b"bytes"
        assert plain.asked == [None]


def test_a_digest_that_the_server_states(tmp_path):
    md5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()
    with serving(FILES, stated={"x-goog-hash": f"md5={md5}"}) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert read_address(f"{site.address}/a.npz", at_most=1 << 20) == BODY
        site.files = {"/b.npz": BODY[::-1]}
        with pytest.raises(
            UserError, match=r"the download has the md5 .* x-goog-hash states; it is"
        ):
            fetch(f"{site.address}/b.npz", tmp_path / "b.npz")
        with pytest.raises(UserError, match=r"the download has the md5 .* x-goog-hash states\."):
            read_address(f"{site.address}/b.npz", at_most=1 << 20)
    assert not (tmp_path / "b.npz").exists()
    assert not (tmp_path / ".b.npz.part").exists()


def test_the_published_digest_wins(tmp_path):
    with serving(FILES, stated={"Digest": "md5=AAAAAAAAAAAAAAAAAAAAAA=="}) as site:
        digest = f"sha256:{hashlib.sha256(BODY).hexdigest()[:8]}"
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz", digest=digest)


def test_a_digest_of_a_redirect_is_the_files(tmp_path):
    """The hub states it where it sends on to the store."""
    moved = head("302 Found", Location="/a.npz", X_Linked_ETag=f'"{"0" * 64}"')
    with (
        serving(FILES, raw={"/old": [moved]}) as site,
        pytest.raises(
            UserError, match=r"has the sha256 .*, not 00000000\.\.\. as the server's X-L"
        ),
    ):
        fetch(f"{site.address}/old", tmp_path / "a.npz")


def begun(folder, size=100_000, **facts):
    """A download of `BODY` that ended early, and what is kept of its server's answer."""
    (folder / ".a.npz.part").write_bytes(BODY[:size])
    lines = ['"1"', *(f"{name} {value}" for name, value in facts.items())]
    (folder / ".a.npz.part.version").write_text("\n".join(lines))


def part(start=100_000, stop=300_000, total=300_000, length=None, **headers):
    """A 206 with the named bytes."""
    data = BODY[start:stop]
    stated = {"Content_Range": f"bytes {start}-{stop - 1}/{total}", "ETag": '"1"'} | headers
    length = {"Content_Length": len(data) if length is None else length}
    return head("206 Partial Content", **stated, **length) + data


def whole():
    return head(Content_Length=len(BODY), ETag='"2"') + BODY


@pytest.mark.parametrize(
    "answer",
    [
        part(start=0),
        part(start=99_999),
        part(start=100_001),
        part(total=300_001),
        part(total=299_999),
        part(Content_Range="bytes 100000-99999/300000"),
        part(Content_Range="bytes */300000"),
        part(Content_Range="bytes 100000-"),
        part(Content_Range="items 100000-299999/300000"),
        part(Content_Range="bytes 100000-299998/300000"),
        part(ETag='"2"'),
        part(ETag='W/"2"'),
        part(Digest="sha-256=" + "0" * 64),
        part().replace(b"Content-Range", b"Content-Rang"),
        part()[:-50_000].replace(b"Content-Length: 200000", b"Content-Length: 150000"),
        head("206 Partial Content", Content_Type="multipart/byteranges; boundary=x"),
        head("416 Range Not Satisfiable", Content_Range="bytes */300000"),
    ],
)
def test_a_206_that_does_not_continue_the_part(answer, tmp_path):
    """Nothing of it is appended; the file is asked for anew, from its beginning."""
    begun(tmp_path, bytes=300_000, sha256=f"{hashlib.sha256(BODY).hexdigest()} as it states")
    with serving(FILES, first=[[answer]]) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert site.asked == ["bytes=100000-", None]
    assert (tmp_path / "a.npz").read_bytes() == BODY


@pytest.mark.parametrize(
    "answer",
    [
        part(),
        part(total="*"),
        part(ETag='W/"1"'),
        part().replace(b"ETag", b"Etc."),
        part().replace(b"Content-Length", b"Content-Lengt."),
        part(Digest="sha-256=" + hashlib.sha256(BODY).hexdigest()),
    ],
)
def test_a_206_that_does_continue_it(answer, tmp_path):
    begun(tmp_path, bytes=300_000, sha256=f"{hashlib.sha256(BODY).hexdigest()} as it states")
    with serving({}, raw={"/a.npz": [answer]}) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert site.asked == ["bytes=100000-"]
    assert (tmp_path / "a.npz").read_bytes() == BODY


def test_the_digest_of_the_first_answer_is_that_of_the_last(tmp_path):
    """A 206 without one: what the 200 stated is kept beside the part."""
    md5 = base64.b64encode(hashlib.md5(BODY[::-1]).digest()).decode()
    with serving(FILES, cuts=[100_000, 0], stated={"Content-MD5": md5}) as site:
        with pytest.raises(UserError, match="broke after 100,000 bytes; try again, and it resumes"):
            fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        site.stated = {}
        with pytest.raises(UserError, match="as the server's Content-MD5 states; it is removed"):
            fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert site.asked[2:] == ["bytes=100000-", None]


def test_a_part_of_short_ranges_is_asked_for_till_all_is_here(tmp_path):
    """A server that gives no more than 100,000 bytes at once."""
    begun(tmp_path, bytes=300_000)
    with serving(FILES, first=[[part(stop=200_000)]]) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        assert site.asked == ["bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "a.npz").read_bytes() == BODY


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_without_a_length_is_bounded(chunked, tmp_path):
    data = b"x" * 4096
    answer = [head(), data]
    if chunked:
        answer = [head(Transfer_Encoding="chunked"), b"1000\r\n" + data + b"\r\n"]
    for line in refusals(Endless(answer), tmp_path, at_most=1_000_000):
        assert "is larger than the 1,000,000 bytes that are read" in line


@pytest.mark.parametrize(
    "endless",
    [
        [b"HTTP/1.1 100 Continue\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbytes\r\n0\r\n", b"a: b\r\n"],
    ],
    ids=["continue", "trailers"],
)
def test_headers_without_end_are_bounded(endless, tmp_path):
    for line in refusals(Endless(endless), tmp_path):
        assert "what the server sends is not HTTP" in line


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200", head(Content_Length=300_000), head(Transfer_Encoding="chunked")]
)
def test_a_byte_now_and_then_is_no_progress(start, tmp_path, monkeypatch):
    """Each read returns in time; what counts is what came in all."""
    monkeypatch.setattr(connections, "PATIENCE", 0.4)

    byte = b"1\r\nx\r\n" if b"chunked" in start else b"1"
    begun_at = time.monotonic()
    for line in refusals([start, *[0.05, byte] * 200], tmp_path):
        assert "fewer than 65,536 bytes came in 0.4 s" in line
    assert time.monotonic() - begun_at < 5


def test_silence_is_no_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.2)
    for line in refusals([1.0], tmp_path):
        assert "fewer than 65,536 bytes came in 0.2 s" in line


def test_a_steady_slow_server_is_waited_for(tmp_path, monkeypatch):
    """It takes longer than PATIENCE in all, and sends LEAST bytes in less."""
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    pieces = [BODY[i : i + 40_000] for i in range(0, len(BODY), 40_000)]
    raw = [head(Content_Length=len(BODY)), *(x for piece in pieces for x in (0.2, piece))]
    with serving({}, raw={"/a.npz": raw}) as site:
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == BODY


def test_a_little_with_each_try_is_no_progress(tmp_path):
    """A connection that closes after a byte: two tries, not 300,000."""
    with (
        serving(FILES, cuts=[1] * 100) as site,
        pytest.raises(UserError, match="the connection broke after 2 bytes; try again"),
    ):
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert len(site.asked) == 2


def test_a_disk_that_fills(tmp_path, monkeypatch):
    original = download._write

    def write(file, *rest):
        del file
        with Path("/dev/full").open("wb", buffering=0) as full:
            original(full, *rest)

    monkeypatch.setattr(download, "_write", write)
    with serving(FILES) as site:
        with pytest.raises(
            UserError, match=r"disk of .* is full; make room, .* from \.a\.npz\.par"
        ):
            fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
        monkeypatch.undo()
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == BODY


def test_proxies(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{free.getsockname()[1]}"
    cases = {
        f"http://someone:secret@{gone}": rf"through the proxy {gone} .*\(Connection refused\)",
        f"socks5://{gone}": "the proxy is not an http:// one",
    }
    for proxy, line in cases.items():
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(UserError, match=line) as error:
            read_address("http://example.invalid/a.jpg", at_most=9)
        assert "secret" not in str(error.value)
    refusing = {"/": [head("407 Proxy Authentication Required")]}
    with serving({}, raw=refusing) as site:
        monkeypatch.setenv("http_proxy", site.address)
        site.raw = {"http://example.invalid/a.jpg": refusing["/"]}
        with pytest.raises(UserError, match="the server answers 407 Proxy Authentication Req"):
            read_address("http://example.invalid/a.jpg", at_most=9)


def test_a_proxy_that_opens_no_tunnel(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match=r"example.invalid through the proxy .* 407 Proxy"):
            read_address("https://example.invalid/a.jpg", at_most=9)
        thread.join()


def test_a_server_without_tls():
    with serving(FILES) as site, pytest.raises(UserError, match="does not speak TLS"):
        read_address(site.address.replace("http:", "https:"), at_most=9)


@pytest.mark.parametrize(
    "address",
    ["http://", "http:///a", "http://[::1/a", "http://h:port/a", "ftp://h/a", "http://a\0"],
)
def test_no_addresses(address):
    with pytest.raises(UserError, match=r"is not an address; http://HOST/PATH") as error:
        read_address(address, at_most=9)
    assert str(error.value).isprintable()


def test_names_that_are_not_ascii_are_quoted():
    with serving({"/b%C3%A4r%20a.jpg?x=%C3%A4": b"bytes"}) as site:
        assert read_address(f"{site.address}/bär a.jpg?x=ä", at_most=9) == b"bytes"


def test_what_nobody_can_compare_is_reported(tmp_path, caplog):
    with serving(FILES, length=False, etag=None) as site, caplog.at_level(logging.WARNING):
        fetch(f"{site.address}/a.npz", tmp_path / "a.npz")
    assert (
        "its size and digest are unknown, so the 300,000 bytes that arrived are not checked"
        in caplog.text
    )

"""Answers of servers: their headers are checked before their bytes are read.

urllib follows redirects to ftp:, and from https to http, takes any 2xx and any Content-Encoding for
the file, and believes a Content-Range. So redirects, statuses and headers are read here.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.connections import MOST_HEADERS, Response, connect, reason_of
from vitswin_jax.weights.digests import Digest, stated_digests

_HEADERS = {"User-Agent": "vitswin_jax", "Accept-Encoding": "identity"}
_CHUNK = 1 << 18
_MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Broken(Exception):  # noqa: N818, it is expected
    """A connection that ended before its file did; says why."""


class Version(NamedTuple):
    """The version of a file at an address, which tells it from earlier and later ones."""

    tag: str = ""
    """Its ETag, a strong one, or Last-Modified; nothing: the server states none."""
    total: int | None = None
    """Bytes of the file."""
    digests: tuple[Digest, ...] = ()

    def contradicts(self, other: Version) -> bool:
        """Returns whether both state a size or a digest, and other ones; tags are not compared."""
        mine = {algorithm: digits for algorithm, digits, _ in self.digests}
        return (None not in (self.total, other.total) and self.total != other.total) or any(
            mine.get(algorithm, digits) != digits for algorithm, digits, _ in other.digests
        )


@dataclass
class Answer:
    """A server's answer with a file, or with what follows its byte `start`."""

    version: Version
    start: int
    length: int | None
    """Bytes to come; None: the server does not say."""
    media_type: str
    """Its Content-Type, such as text/html."""
    _response: Response = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """Yields chunks of the body, at most `length` bytes; raises Broken if fewer arrive."""
        left = self.length
        while left is None or left > 0:
            chunk = self._read(_CHUNK if left is None else min(left, _CHUNK))
            if not chunk and left:
                raise Broken("the server closed it")
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk

    def _read(self, most: int) -> bytes:
        self._response.steady.left = most + MOST_HEADERS
        try:
            chunk = self._response.read1(most)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Broken(reason_of(error)) from error
        if self._response.chunked and (self._response.chunk_left or 0) < 0:
            raise Broken("the server sends a chunk of a negative size")
        return chunk

    def close(self) -> None:
        """Closes the connection."""
        self._response.close()


@contextlib.contextmanager
def asking(
    address: str, *, start: int = 0, known: Version | None = None, by_hand: Path | None = None
) -> Iterator[Answer]:
    """Gives an http or https address's answer, and closes it.

    `start`: bytes that are here, of the version `known`. The answer's `start` is that number, or 0
    where the server has another version now, or states another part than was asked for. `by_hand`
    is where a file may be put without a network. Raises UserError, in one line.
    """
    answer = None
    if start and known and known.tag:
        answer = _ask(address, by_hand, start, known)
    answer = answer or _ask(address, by_hand)
    assert answer is not None  # what a request without a range gets, or an error
    with contextlib.closing(answer):
        yield answer


def _ask(
    address: str, by_hand: Path | None, start: int = 0, known: Version | None = None
) -> Answer | None:
    """Returns an answer; None: what there is from `start` does not continue what is known."""
    headers = _HEADERS
    if known:
        headers = headers | {"Range": f"bytes={start}-", "If-Range": known.tag}
    response, before = _follow(address, headers, by_hand)
    with contextlib.ExitStack() as on_error:
        on_error.callback(response.close)
        if known and response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None
        partial = known is not None and response.status == HTTPStatus.PARTIAL_CONTENT
        if response.status != HTTPStatus.OK and not partial:
            raise UserError(f"{address}: the server answers {_status(response)}.")
        _check_coding(address, response.headers)
        length = _length(address, response.headers)
        version = _version(response.headers, before, total=None if partial else length)
        if partial and known:
            part = _part(response.headers, start, length)
            if part is None or not _has_tag(response.headers, known.tag):
                return None
            version = version._replace(total=part.total)
            if known.contradicts(version):
                return None
            total = known.total if part.total is None else part.total
            version = Version(known.tag, total, (*known.digests, *version.digests))
            length = part.length
        on_error.pop_all()
    media_type = response.headers.get_content_type()
    return Answer(version, start if partial else 0, length, media_type, response)


def _follow(
    address: str, headers: Mapping[str, str], by_hand: Path | None
) -> tuple[Response, list[Message]]:
    """Returns the answer at the end of an address's redirects, and the headers of these."""
    place, seen = address, {address}
    before: list[Message] = []
    while True:
        response = connect(address, place, headers, by_hand)
        if response.status not in _REDIRECTS or "Location" not in response.headers:
            return response, before
        response.close()
        before.append(response.headers)
        target = _next_place(address, place, str(response.headers["Location"]))
        if target in seen or len(seen) > _MOST_REDIRECTS:
            how = "in a circle" if target in seen else f"more than {_MOST_REDIRECTS} times"
            raise UserError(f"{address}: is redirected {how}, at last to {target[:200]}.")
        seen.add(target)
        place = target


def _next_place(address: str, place: str, location: str) -> str:
    # http.client reads headers as Latin-1; browsers quote what is not ASCII.
    location = quote(location, safe=string.punctuation, encoding="iso-8859-1")
    try:
        target = urljoin(place, location)
        scheme, _ = urlsplit(target).scheme, urlsplit(target).port
    except ValueError:
        raise UserError(f"{address}: is redirected to {location[:200]}: no address.") from None
    safe = ("https",) if urlsplit(place).scheme.lower() == "https" else ("http", "https")
    if scheme not in safe:
        raise UserError(
            f"{address}: is redirected to {target[:200]}, and only {' and '.join(safe)} "
            f"addresses are followed from there."
        )
    return target


def _status(response: Response) -> str:
    """Returns the status as a message has it, with the reason that HTTP has for it if none is."""
    with contextlib.suppress(ValueError):
        reason = response.reason or HTTPStatus(response.status).phrase
        what = " and no file" if response.status < 300 else ""
        what = " without a place to go" if response.status in _REDIRECTS else what
        return f"{response.status} {reason[:60]}{what}"
    return str(response.status)


def _check_coding(address: str, headers: Message) -> None:
    for name, right in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        value = ", ".join(map(str, headers.get_all(name, [])))
        if value and value.strip().lower() != right:
            raise UserError(
                f"{address}: the server sends the {name} {value[:40]!r}, and was asked for none."
            )


def _length(address: str, headers: Message) -> int | None:
    """Returns Content-Length; None: there is none. Raises UserError where it is no one size."""
    values = [str(value).strip() for value in headers.get_all("Content-Length", [])]
    values = list(dict.fromkeys(part.strip() for value in values for part in value.split(",")))
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch("[0-9]{1,18}", values[0]):
        stated = ", ".join(values)[:60]
        raise UserError(f"{address}: the server states the Content-Length {stated!r}: no size.")
    if "Transfer-Encoding" in headers:
        raise UserError(f"{address}: the server states a Content-Length, and sends chunks.")
    return int(values[0])


def _version(headers: Message, before: list[Message], *, total: int | None) -> Version:
    whole = "Content-Range" not in headers
    every = [*before, headers]
    digests = [d for part in every for d in stated_digests(part, whole=whole and part is headers)]
    return Version(_tag(headers), total, tuple(dict.fromkeys(digests)))


def _tag(headers: Message) -> str:
    """Returns a strong ETag, or the time where there is no ETag at all."""
    tag, modified = (str(headers.get(name, "")) for name in ("ETag", "Last-Modified"))
    if tag:
        return tag if re.fullmatch(r'"[!#-~]{1,500}"', tag) else ""
    return modified if re.fullmatch(r"[A-Za-z0-9 ,:+-]{1,60}", modified) else ""


def _has_tag(headers: Message, tag: str) -> bool:
    """Returns whether what a 206 states, if it does, is the tag that it was asked for."""
    name = "ETag" if tag.startswith('"') else "Last-Modified"
    return str(headers.get(name, tag)).removeprefix("W/") == tag


class _Part(NamedTuple):
    length: int
    total: int | None


def _part(headers: Message, start: int, length: int | None) -> _Part | None:
    """Returns the sizes that a 206 states; None: it is not from the byte `start` to the end."""
    value = str(headers.get("Content-Range", ""))
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", value.strip())
    if not found:
        return None
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    has = last - first + 1
    fits = total is None or last < total
    if first != start or has <= 0 or not fits or length not in (None, has):
        return None
    return _Part(has, total)

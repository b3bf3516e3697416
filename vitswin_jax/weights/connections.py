"""Connections to servers by urllib, with proxies, certificates and a minimum speed.

urllib waits for ever for a server that sends one byte a minute, and for one whose headers never
end. What comes passes `Steady`, which counts.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import string
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from vitswin_jax.core.types import UserError

PATIENCE = 30.0
"""Seconds of waiting in which a server has to send `LEAST` bytes, or all that is left."""
LEAST = 1 << 16

MOST_HEADERS = 1 << 20
"""Bytes of headers, and of what chunks have beside the file's bytes."""


def connect(address: str, place: str, headers: Mapping[str, str], by_hand: Path | None) -> Response:
    """Opens `place`, which `address` led to; a status is no error yet."""
    try:
        scheme, netloc, path, query, _ = urlsplit(place)
        path, query = (quote(part, safe=string.punctuation) for part in (path, query))
        if scheme not in ("http", "https") or not netloc:
            raise ValueError
        place = urlunsplit((scheme, netloc, path, query, ""))
        request = urllib.request.Request(place, headers=dict(headers))
        opener = urllib.request.build_opener(_AnyStatus, _Http, _Https)
    except ValueError:
        raise UserError(
            f"{address}: is not an address; http://HOST/PATH and https://HOST/PATH are."
        ) from None
    try:
        return opener.open(request, timeout=PATIENCE)
    except (http.client.InvalidURL, UnicodeError, ValueError):
        raise UserError(
            f"{address}: is not an address; http://HOST/PATH and https://HOST/PATH are."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        proxy = "" if request.host == netloc else request.host
        reason = reason_of(error)
        way = f"; without a network, put the file there as {by_hand}" if by_hand else ""
        host = f"{netloc.rpartition('@')[2]}{f' through the proxy {proxy}' if proxy else ''}"
        raise UserError(f"{address}: {host} cannot be reached ({reason}){way}.") from error


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (
        ssl.SSLCertVerificationError,
        "its certificate is not trusted: {0.verify_message}; where your network has a certificate "
        "of its own, set SSL_CERT_FILE to it",
    ),
    (TimeoutError, "fewer than {1:,} bytes came in {2:g} s"),
    (ssl.SSLError, "it does not speak TLS; is the address http://?"),
    (http.client.RemoteDisconnected, "the server closed it"),
    (http.client.IncompleteRead, "the server closed it"),
    (http.client.HTTPException, "what the server sends is not HTTP"),
    (ValueError, "what the server sends is not HTTP"),
)
"""Exceptions, the nearest first -> why a connection failed, in our words."""


def reason_of(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    for kind, text in _REASONS:
        if isinstance(error, kind):
            return text.format(error, LEAST, PATIENCE)
    if isinstance(error, urllib.error.URLError):  # the scheme of a proxy: ours are looked at before
        return "the proxy is not an http:// one"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Statuses, and redirects with them, as answers rather than exceptions."""

    def http_response(self, request: Any, response: Any) -> Any:
        del request
        return response

    https_response = http_response


class Steady(io.RawIOBase):
    """The bytes of a socket, which come at a pace, and no more than `left`."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        self._waited, self._count = 0.0, 0  # since the last LEAST bytes were here
        self.left = MOST_HEADERS

    def makefile(self, mode: str) -> io.BufferedReader:
        """Returns the file object that http.client reads."""
        assert mode == "rb"
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Returns True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Reads once; raises TimeoutError where too little came in PATIENCE seconds of waiting."""
        if self._waited >= PATIENCE:
            raise TimeoutError
        begun = time.monotonic()
        self._sock.settimeout(PATIENCE - self._waited)
        count = self._raw.readinto(buffer) or 0
        self._waited += time.monotonic() - begun
        self._count += count
        if self._count >= LEAST:
            self._waited, self._count = 0.0, 0
        self.left -= count
        if self.left < 0:
            raise http.client.HTTPException
        return count

    def close(self) -> None:
        """Lets the socket close."""
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """An HTTP response whose bytes are `Steady`."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        self.steady = Steady(sock)
        super().__init__(self.steady, *args, **kwargs)  # type: ignore[arg-type]


class _Connection(http.client.HTTPConnection):
    response_class = Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = Response


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, req)

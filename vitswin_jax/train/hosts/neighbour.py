"""Files of sets that one host keeps for another, over TCP.

Each host has a depot: a listener that takes files and gives them to whoever knows its secret, which
the hosts exchange through the coordination store. Connections, their frames and the mutual proof of
the secret (HMAC) are those of Python's `multiprocessing.connection`. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.json import parse_json
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.port import connect

PATIENCE = 20.0  # seconds without a byte, after which the other side counts as dead
_LEAVE = 5.0  # seconds for a thread to end whose connection was cut
_CHUNK = 1 << 20
_MESSAGE = 4096  # bytes of the longest message
_CLIENTS = 8  # connections at once; more wait
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**62}
_TEXT = {"type": "string", "maxLength": 1024}
_REQUEST = {
    "type": "object",
    "required": ["do", "host", "step", "size"],
    "properties": {
        "do": {"enum": ["put", "get"]},
        **dict.fromkeys(("host", "step", "size"), _NUMBER),
    },
}
_ANSWER = {
    "type": "object",
    "required": ["go", "why", "size"],
    "properties": {"go": {"type": "boolean"}, "why": _TEXT, "size": _NUMBER},
}
_END = {"type": "object", "required": ["crc"], "properties": {"crc": _NUMBER}}


class RefusedError(Exception):
    """A host that answers, and does not take or give a file; the message says why."""


class Peer(NamedTuple):
    """The depot of a host: the HOST:PORT of its listener, and its secret."""

    address: str
    secret: str


class Depot:
    """A listener that keeps files for other hosts and gives them back.

    A caller has to know the `secret` before a byte of a file is read or written. It may put the
    files of the hosts in `limits`, up to so many bytes each, and get any file that is there.
    """

    def __init__(
        self,
        ip: str,
        path_of: Callable[[int, int], Path],
        kept: Callable[[int], None],
        *,
        patience: float = PATIENCE,
    ) -> None:
        """Listens at `ip`, on a free port; raises OSError where it cannot.

        `path_of` gives the place of a file by its host and step; `kept` is called with the host
        when a file of it has been kept. Who says nothing for `patience` seconds is cut off.
        """
        self._path_of, self._kept, self._patience = path_of, kept, patience
        self.limits: Mapping[int, int] = {}
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._listener = socket.create_server((ip, 0), family=family)
        name = f"[{ip}]" if family == socket.AF_INET6 else ip
        self.peer = Peer(f"{name}:{self._listener.getsockname()[1]}", secrets.token_hex(32))
        self._free = threading.BoundedSemaphore(_CLIENTS)
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._closed = False
        self._lock = threading.Lock()  # of whether it is closed, and who is served
        threading.Thread(target=self._accept, name="depot", daemon=True).start()

    def close(self) -> None:
        """Ends all connections; what was not received whole is not kept."""
        with self._lock:
            self._closed = True
            served = list(self._clients.items())
        _cut(self._listener)
        self._listener.close()
        for thread, client in served:
            _cut(client)
            thread.join(_LEAVE)

    def _accept(self) -> None:
        while not self._closed:
            self._free.acquire()
            try:
                client, _ = self._listener.accept()
            except OSError:
                self._free.release()
                if not self._closed:
                    threading.Event().wait(1.0)  # such as too many open files
                continue
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._lock:
                if self._closed:
                    client.close()
                    return
                self._clients[thread] = client
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        broken = (OSError, EOFError, ValueError, AuthenticationError, RefusedError)
        try:
            with contextlib.suppress(*broken), client:
                secret = self.peer.secret
                with _proven(client, secret, patience=self._patience, first=True) as connection:
                    request = _hear(connection, _REQUEST)
                    do = self._take if request["do"] == "put" else self._give
                    do(connection, request["host"], request["step"], request["size"])
        finally:
            self._clients.pop(threading.current_thread(), None)
            self._free.release()

    def _take(self, connection: Connection, host: int, step: int, size: int) -> None:
        why = ""
        if host not in self.limits:
            why = f"it keeps no sets of host {host}"
        elif size > self.limits[host]:
            why = f"{size:,} bytes are more than a set of host {host} can have"
        path = self._path_of(host, step)
        there = not why and path.is_file() and path.stat().st_size == size  # hosts of one disk
        if not why and not there:
            why = _fault_of(path)
        _say(connection, go=not why and not there, why=why, size=size)
        if why or there or self._closed:
            return
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                _fill(connection, file, size)
        except (OSError, UserError) as error:
            why = reason_of(error)
        else:
            self._kept(host)
        _say(connection, go=not why, why=why, size=size)

    def _give(self, connection: Connection, host: int, step: int, size: int) -> None:
        try:
            file = self._path_of(host, step).open("rb")
        except OSError as error:
            _say(connection, go=False, why=reason_of(error), size=0)
            return
        with file:
            found = os.fstat(file.fileno()).st_size
            why = "it is too large" if found > size else ""
            _say(connection, go=not why, why=why, size=found)
            if not why:
                _pour(connection, file, found)


def reason_of(error: Exception) -> str:
    """Returns the reason of an error in words, without the path on which it happened."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause or error)
    return text.rstrip(".")


def _fault_of(path: Path) -> str:
    """Returns why a file cannot be written, before it is sent, or ""; makes its folder."""
    trial = path.with_name(f".{path.name}.{threading.get_ident()}.trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        return reason_of(error)
    return ""


def put(peer: Peer, path: Path, *, host: int, step: int, patience: float = PATIENCE) -> None:
    """Has a depot keep the file of a set; raises RefusedError, and OSError for a dead host."""
    with path.open("rb") as file, _called(peer, patience) as connection:
        size = os.fstat(file.fileno()).st_size
        _say(connection, do="put", host=host, step=step, size=size)
        answer = _hear(connection, _ANSWER)
        if answer["go"]:
            _pour(connection, file, size)
            answer = _hear(connection, _ANSWER)
    if answer["why"]:
        raise RefusedError(answer["why"])


def get(
    peer: Peer, path: Path, *, host: int, step: int, limit: int, patience: float = PATIENCE
) -> None:
    """Writes a file of a depot, of at most `limit` bytes, to `path`, whole or not at all.

    Raises RefusedError, OSError for a dead host, and UserError where it cannot be written.
    """
    with _called(peer, patience) as connection:
        _say(connection, do="get", host=host, step=step, size=limit)
        answer = _hear(connection, _ANSWER)
        if not answer["go"]:
            raise RefusedError(answer["why"])
        if answer["size"] > limit:
            raise RefusedError("it is too large")
        with replacing(path) as temporary, temporary.open("wb") as file:
            try:
                _fill(connection, file, answer["size"])
            except (BlockingIOError, ConnectionError, EOFError) as error:  # not the disk's
                raise RefusedError("the connection broke") from error


@contextlib.contextmanager
def _called(peer: Peer, patience: float) -> Iterator[Connection]:
    """Connects to a depot; what goes wrong on the way is an OSError or a RefusedError."""
    if not peer.address:
        raise RefusedError("it cannot listen")
    try:
        with (
            connect(peer.address, timeout=patience) as client,
            _proven(client, peer.secret, patience=patience, first=False) as connection,
        ):
            yield connection
    except BlockingIOError as error:
        raise TimeoutError(f"it says nothing for {patience:g} s") from error
    except EOFError as error:
        raise ConnectionError("it ends the connection") from error
    except AuthenticationError as error:
        raise RefusedError("it has another secret") from error


@contextlib.contextmanager
def _proven(
    client: socket.socket, secret: str, *, patience: float, first: bool
) -> Iterator[Connection]:
    """Gives a connection once both sides have proven that they know the secret.

    A silent side ends a read or a write after `patience` seconds; the whole proof has as many.
    """
    client.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        seconds, rest = divmod(patience, 1.0)
        client.setsockopt(
            socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(rest * 1e6))
        )
    late = threading.Timer(patience, _cut, args=(client,))
    late.daemon = True
    late.start()
    proofs = (
        (deliver_challenge, answer_challenge) if first else (answer_challenge, deliver_challenge)
    )
    with Connection(os.dup(client.fileno())) as connection:
        try:
            for proof in proofs:
                proof(connection, secret.encode())
        finally:
            late.cancel()
        yield connection


def _cut(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _say(connection: Connection, **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _hear(connection: Connection, schema: Mapping[str, Any]) -> Any:
    return parse_json(connection.recv_bytes(_MESSAGE), schema, origin="a message")


def _pour(connection: Connection, file: BinaryIO, size: int) -> None:
    """Sends `size` bytes of a file and their CRC-32; raises ConnectionError where it is shorter."""
    crc = 0
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise ConnectionError("the file was cut off")
        crc, size = zlib.crc32(chunk, crc), size - len(chunk)
        connection.send_bytes(chunk)
    _say(connection, crc=crc)


def _fill(connection: Connection, file: BinaryIO, size: int) -> None:
    """Receives `size` bytes into a file; raises OSError where they or the file are not right.

    All is received even if it cannot be written, so that the sender hears the reason.
    """
    crc, failed = 0, None
    while size:
        chunk = connection.recv_bytes(min(size, _CHUNK))
        crc, size = zlib.crc32(chunk, crc), size - len(chunk)
        try:
            if failed is None:
                file.write(chunk)
        except OSError as error:
            failed = error
    if _hear(connection, _END)["crc"] != crc:
        raise ConnectionError("it was damaged on the way")
    if failed is not None:
        raise failed

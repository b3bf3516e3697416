"""The coordinator's port: checks that it is free on host 0 and that JAX answers there."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from collections.abc import Iterator

from vitswin_jax.core.types import UserError

_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # the frame that a server of HTTP/2, as gRPC's are, begins with
_PAUSE = 0.2  # seconds between tries


@contextlib.contextmanager
def own_port(address: str) -> Iterator[None]:
    """Raises UserError where host 0's port is taken on this machine, by whatever it is.

    gRPC would share it with another of its servers, and each would get some of the hosts. Of two
    processes that are in the block at once, one fails.
    """
    port = int(address.rsplit(":", 1)[1])
    with socket.socket(socket.AF_UNIX) as mark:
        try:
            if sys.platform == "linux":
                mark.bind(f"\0vitswin_jax/coordinator/{port}")
            for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                _try_to_bind(family, anywhere, port)
        except OSError as error:
            raise UserError(
                f"the coordinator's port {port} is taken on this machine ({error.strerror}), by "
                "another program or another process with --host_index=0; choose another in "
                "--coordinator, on all hosts."
            ) from error
        yield


def _try_to_bind(family: int, anywhere: str, port: int) -> None:
    """Raises OSError where something listens at a port, or this user may not."""
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after an earlier run
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((anywhere, port))
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise  # of others, such as a machine without IPv6, gRPC knows


def await_coordinator(host: int, address: str, *, timeout: float, silence: float) -> None:
    """Returns once a server of HTTP/2 answers at the coordinator's address.

    Raises UserError where nothing does for `timeout` seconds, or something else is there that says
    nothing for `silence` seconds.
    """
    give_up = time.monotonic() + timeout
    while True:
        try:
            with connect(address, timeout=5) as probe:
                answer = _answer(probe, silence)
        except OSError as error:
            if time.monotonic() > give_up:
                raise UserError(unreachable(host, address, error, timeout)) from error
            time.sleep(_PAUSE)
            continue
        if len(answer) >= 4 and answer[3] == _SETTINGS:
            return
        raise UserError(
            f"host {host} finds another program at the coordinator's port {address}; choose "
            "another in --coordinator, on all hosts."
        )


def _answer(probe: socket.socket, silence: float) -> bytes:
    probe.settimeout(silence)
    with contextlib.suppress(TimeoutError):
        probe.sendall(_HELLO)
        return probe.recv(9)
    return b""


def connect(address: str, *, timeout: float) -> socket.socket:
    """Returns a connection to HOST:PORT; `timeout` is in seconds."""
    name, port = address.rsplit(":", 1)
    return socket.create_connection((name.strip("[]"), int(port)), timeout=timeout)


def unreachable(host: int, address: str, error: OSError, timeout: float) -> str:
    """Returns the line of a host that cannot reach the coordinator."""
    return (
        f"host {host} cannot reach the coordinator {address} ({error.strerror or error}), for "
        f"{timeout:g} s; it is the address of host 0, which must run and let the port in."
    )

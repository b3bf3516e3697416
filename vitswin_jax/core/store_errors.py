"""Errors of object stores' clients: the reason in a few words, and whether it may pass."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Any, NamedTuple

_CLIENTS = ("gcsfs", "s3fs", "aiobotocore", "botocore")
_CODE = re.compile(r"[A-Za-z]{1,40}")


class Reason(NamedTuple):
    """The reason of an error, and whether the same call may succeed a little later."""

    words: str
    passes: bool = False


NO_BUCKET = Reason("there is no such bucket")
NOT_THERE = Reason("it is not there")
_UNKNOWN = Reason("no credentials are found, or they are not accepted")
_DENIED = Reason("permission is denied for these credentials")
_ELSEWHERE = Reason("the bucket is in another region")
_SILENT = Reason("the store does not answer", passes=True)

_BY_STATUS = {301: _ELSEWHERE, 401: _UNKNOWN, 403: _DENIED, 404: NOT_THERE}
_LASTING = (
    (r"no bucket|NoSuchBucket|bucket does not exist", NO_BUCKET),
    (r"credential|Anonymous caller|Unauthenticated|InvalidAccessKeyId|SignatureDoes", _UNKNOWN),
    (r"AccessDenied|Access Denied|PermissionError|Forbidden", _DENIED),
    (r"certificate|SSLError", Reason("the store's certificate is not accepted")),
    (r"PermanentRedirect|RecursionError", _ELSEWHERE),  # a client follows redirects for ever
)
_PASSING = (
    (r"SlowDown|InternalError|ServiceUnavailable", Reason("the store answers with an error", True)),
    (r"EndpointConnection|ConnectionRefused|ConnectorError|ConnectionClosed", _SILENT),
    (r"Timeout|Disconnected|Cannot connect|ProxyError|IncompleteRead|PayloadError", _SILENT),
)
"""Patterns of errors' types and texts, looked for before the status of an answer, and after it."""


def hush_clients() -> None:
    """Keeps off the screen what stores' clients log, with tracebacks, of errors that they raise.

    Who has set a level of a client's logger, to look for a fault, still sees its records.
    """
    for name in _CLIENTS:
        client = logging.getLogger(name)
        if client.level == logging.NOTSET:
            client.setLevel(logging.CRITICAL + 1)


def reason_of(error: BaseException) -> Reason:
    """Returns the reason of an error that a store's client has raised.

    >>> reason_of(PermissionError("Access Denied")).words
    'permission is denied for these credentials'
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return Reason(error.strerror.rstrip("."))  # of a file of this host
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 5:
        chain.append(cause)
    text = " ".join(f"{type(each).__name__} {each}" for each in chain)
    answers = (_answer_of(each) for each in chain)
    status, code = next((answer for answer in answers if answer[0]), (0, ""))
    for patterns, otherwise in ((_LASTING, _by_status(status, code)), (_PASSING, _rest(error))):
        for pattern, reason in patterns:
            if re.search(pattern, text, re.IGNORECASE):
                return reason
        if otherwise is not None:
            return otherwise
    return Reason(f"the store's answer is not understood ({type(chain[-1]).__name__})")


def _by_status(status: int, code: str) -> Reason | None:
    """Returns the reason that the status and the code of an answer show, None if it is none."""
    if status < 400 and status not in _BY_STATUS:
        return None
    passes = status in (408, 425, 429) or status >= 500
    words = "the store answers with an error" if passes else "the store refuses the request"
    return _BY_STATUS.get(status, Reason(f"{words} ({f'{status} {code}'.strip()})", passes))


def _rest(error: BaseException) -> Reason | None:
    """Returns the reason of an error of Python's own, None of another one."""
    if isinstance(error, FileNotFoundError):
        return NOT_THERE
    if isinstance(error, TimeoutError | ConnectionError):
        return _SILENT
    if isinstance(error, OSError) and error.strerror and error.__cause__ is None:
        return Reason(error.strerror.rstrip("."))
    return None


def _answer_of(error: BaseException) -> tuple[int, str]:
    """Returns the status and the code of a store's answer; (0, "") where an error has none."""
    status: Any = getattr(error, "code", None) or getattr(error, "status", None)
    code = ""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = str(answer.get("Error", {}).get("Code", ""))
    with contextlib.suppress(TypeError, ValueError):
        return int(status), code if _CODE.fullmatch(code) else ""
    return 0, ""

"""Errors as stores' clients raise them: each is a few words of ours, and some are tried again."""

import errno
import logging

import pytest

from vitswin_jax.core.store_errors import hush_clients, reason_of


class ClientError(Exception):
    """As botocore raises it, which need not be installed."""

    def __init__(self, status, code):
        super().__init__(f"An error occurred ({code}) when calling the PutObject operation: No.")
        facts = {"HTTPStatusCode": status}
        self.response = {"Error": {"Code": code}, "ResponseMetadata": facts}


class HttpError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code, message="Not so"):
        super().__init__(f"{message}, {code}")
        self.code = code


class ConnectTimeoutError(Exception):
    """As botocore and aiohttp call theirs."""


def of(error, cause):
    error.__cause__ = cause
    return error


DENIED = "permission is denied for these credentials"
UNKNOWN = "no credentials are found, or they are not accepted"
SILENT = "the store does not answer"


@pytest.mark.parametrize(
    ("error", "words", "passes"),
    [
        (of(PermissionError("No."), ClientError(403, "AccessDenied")), DENIED, False),
        (OSError("Forbidden: https://storage/b/x\nnot you"), DENIED, False),
        (of(PermissionError("No."), ClientError(403, "InvalidAccessKeyId")), UNKNOWN, False),
        (HttpError(401, "Anonymous caller does not have access"), UNKNOWN, False),
        (HttpError(401), UNKNOWN, False),
        (
            of(FileNotFoundError("No."), ClientError(404, "NoSuchBucket")),
            "there is no such bucket",
            False,
        ),
        (of(FileNotFoundError("No."), ClientError(404, "NoSuchKey")), "it is not there", False),
        (FileNotFoundError("https://storage/upload/b"), "it is not there", False),
        (
            of(OSError(errno.EBUSY, "No."), ClientError(503, "SlowDown")),
            "the store answers with an error (503 SlowDown)",
            True,
        ),
        (ClientError(500, "500"), "the store answers with an error (500)", True),
        (HttpError(429), "the store answers with an error (429)", True),
        (
            of(OSError(errno.EIO, "No."), ClientError(400, "BadRequest")),
            "the store refuses the request (400 BadRequest)",
            False,
        ),
        (ClientError(301, "PermanentRedirect"), "the bucket is in another region", False),
        (ConnectTimeoutError("Connect timeout on https://b"), SILENT, True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), SILENT, True),
        (TimeoutError(), SILENT, True),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", False),
        (
            PermissionError(errno.EACCES, "Permission denied", "here/a"),
            "Permission denied",
            False,
        ),
        (
            ValueError("a parser's\nlong text"),
            "the store's answer is not understood (ValueError)",
            False,
        ),
    ],
    ids=str,
)
def test_an_error_of_a_client_is_a_few_words(error, words, passes):
    assert reason_of(error) == (words, passes)


def test_clients_log_nothing_unless_somebody_has_set_their_level():
    names = ("gcsfs", "s3fs")
    before = [logging.getLogger(name).level for name in names]
    try:
        logging.getLogger("gcsfs").setLevel(logging.NOTSET)
        logging.getLogger("s3fs").setLevel(logging.DEBUG)
        hush_clients()
        shown = [logging.getLogger(name).isEnabledFor(logging.ERROR) for name in names]
        assert shown == [False, True]
    finally:
        for name, level in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(level)

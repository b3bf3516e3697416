"""Digests of files: those of a publisher or a server, compared with the download."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c

_SIZES = {"crc32c": 4, "md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}
"""The algorithms that are known -> bytes of a digest."""

_NAMES = {"sha": "sha1"}
"""Other names of algorithms, in small letters and without hyphens."""

_CHUNK = 1 << 20


class Digest(NamedTuple):
    """The digest that a file must have."""

    algorithm: str
    """A key of `_SIZES`."""
    digits: str
    """Hexadecimal: the first digits, or all."""
    by: str
    """Who states it: "as published", or "as the server's x-goog-hash states"."""


def published_digest(text: str | None) -> tuple[Digest, ...]:
    """Returns the digest of a row of the table: `sha256:` or `md5:` and the first digits, or all.

    >>> published_digest("md5:e4b141")
    (Digest(algorithm='md5', digits='e4b141', by='as published'),)
    """
    if text is None:
        return ()
    algorithm, _, digits = text.partition(":")
    return (Digest(algorithm, digits, "as published"),)


def stated_digests(headers: Message, *, whole: bool) -> tuple[Digest, ...]:
    """Returns the digests of a file that a server's headers state, in order; unknown kinds are not.

    `whole`: the answer has the whole file. Some headers are about the bytes of an answer, and so
    say nothing of the file where the answer has a part of it. A digest that cannot be read is
    returned as it is written, and so no file has it.
    """
    found = []
    for name, (read, of_answer) in _HEADERS.items():
        if not whole and of_answer:
            continue
        for value in headers.get_all(name, []):
            for algorithm, digits in read(str(value), headers):
                found.append(Digest(algorithm, digits, f"as the server's {name} states"))
    return tuple(dict.fromkeys(found))


def wrong_digest(digests: Iterable[Digest], digest_of: Callable[[str], str]) -> str:
    """Returns the fault of a file, or ""; `digest_of` is a function of an algorithm."""
    for algorithm, digits, by in digests:
        found = digest_of(algorithm)[: len(digits)]
        if found != digits:
            return f"has the {algorithm} {_short(found)}, not {_short(digits)} {by}"
    return ""


def file_digest(path: Path, algorithm: str) -> str:
    """Returns a file's digest in hexadecimal digits."""
    total = _new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.digest().hex()


def data_digest(data: bytes, algorithm: str) -> str:
    """Returns the digest of bytes in hexadecimal digits."""
    total = _new(algorithm)
    total.update(data)
    return total.digest().hex()


def _new(algorithm: str) -> Any:
    if algorithm == "crc32c":
        return google_crc32c.Checksum()
    return hashlib.new(algorithm, usedforsecurity=False)


def _short(digits: str) -> str:
    return digits if digits.startswith("'") else f"{digits[:8]}..."


_Stated = Iterator[tuple[str, str]]


def _of_google(value: str, headers: Message) -> _Stated:
    """Yields Google's digests, `crc32c=n03x6A==,md5=...`: of the file as it is stored."""
    if headers.get("x-goog-stored-content-encoding", "identity").lower() == "identity":
        yield from _of_list(value, headers)


def _of_list(value: str, headers: Message) -> _Stated:
    """Yields `sha-256=BASE64` of RFC 3230 and `sha-256=:BASE64:` of RFC 9530."""
    del headers
    for item in value.split(","):
        name, _, digest = item.partition("=")
        word = name.strip().lower().replace("-", "")
        algorithm = _NAMES.get(word, word)
        if algorithm in _SIZES:
            yield algorithm, _as_digits(digest.partition(";")[0].strip().strip(":"), algorithm)


def _of_content(value: str, headers: Message) -> _Stated:
    """Yields the one digest of Content-MD5."""
    del headers
    yield "md5", _as_digits(value.strip(), "md5")


def _of_hub(value: str, headers: Message) -> _Stated:
    """Yields the SHA-256 that the Hugging Face hub calls a large file by; small ones have none."""
    del headers
    if found := re.fullmatch(r'"?([0-9a-f]{64})"?', value.strip()):
        yield "sha256", found[1]


def _of_hub_itself(value: str, headers: Message) -> _Stated:
    """Yields the same of the hub's own answers; its stores have other digests in their ETags."""
    if "X-Repo-Commit" in headers and "X-Linked-ETag" not in headers:
        yield from _of_hub(value, headers)


_HEADERS: dict[str, tuple[Callable[[str, Message], _Stated], bool]] = {
    "x-goog-hash": (_of_google, False),
    "Repr-Digest": (_of_list, False),
    "Digest": (_of_list, False),
    "X-Linked-ETag": (_of_hub, False),
    "ETag": (_of_hub_itself, False),
    "Content-Digest": (_of_list, True),
    "Content-MD5": (_of_content, True),
}
"""A header -> how it is read, and whether it is about the bytes of an answer, not of the file."""


def _as_digits(text: str, algorithm: str) -> str:
    """Returns a digest, in base64 or hexadecimal, as hexadecimal digits, or else as it is."""
    size = _SIZES[algorithm]
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", text):
        return text.lower()
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    return data.hex() if len(data) == size else repr(text[:40])

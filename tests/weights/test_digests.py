"""Digests that servers state: known algorithms, each by its header's own form."""

import base64
import email
import hashlib

import google_crc32c
import pytest

from vitswin_jax.weights.digests import (
    data_digest,
    file_digest,
    published_digest,
    stated_digests,
    wrong_digest,
)

DATA = b"weights"
MD5, SHA256, SHA512, SHA1 = (
    hashlib.new(name, DATA).digest() for name in ("md5", "sha256", "sha512", "sha1")
)
CRC32C = google_crc32c.value(DATA).to_bytes(4, "big")


def text(digest):
    return base64.b64encode(digest).decode()


def stated(headers, whole=True):
    headers = email.message_from_string("".join(f"{line}\n" for line in headers) + "\n")
    return {(digest.algorithm, digest.digits) for digest in stated_digests(headers, whole=whole)}


@pytest.mark.parametrize(
    ("headers", "digests"),
    [
        ([f"x-goog-hash: crc32c={text(CRC32C)}", f"x-goog-hash: md5={text(MD5)}"],
         {("crc32c", CRC32C), ("md5", MD5)}),
        ([f"X-Goog-Hash: crc32c={text(CRC32C)},md5={text(MD5)}"],
         {("crc32c", CRC32C), ("md5", MD5)}),
        ([f"x-goog-hash: md5={text(MD5)}", "x-goog-stored-content-encoding: gzip"], set()),
        ([f"x-goog-hash: md5={text(MD5)}", "x-goog-stored-content-encoding: identity"],
         {("md5", MD5)}),
        ([f"Digest: SHA-256={text(SHA256)}, unixsum=30637"], {("sha256", SHA256)}),
        ([f"Digest: sha-256={SHA256.hex().upper()},sha={text(SHA1)}"],
         {("sha256", SHA256), ("sha1", SHA1)}),
        ([f"Repr-Digest: sha-512=:{text(SHA512)}:, sha-256=:{text(SHA256)}:;q=1"],
         {("sha512", SHA512), ("sha256", SHA256)}),
        ([f"Content-MD5: {text(MD5)}"], {("md5", MD5)}),
        ([f'X-Linked-ETag: "{SHA256.hex()}"'], {("sha256", SHA256)}),
        ([f'X-Linked-ETag: "{SHA1.hex()}"'], set()),  # git's, of small files
        ([f'ETag: "{SHA256.hex()}"', "X-Repo-Commit: 0"], {("sha256", SHA256)}),
        ([f'ETag: "{SHA256.hex()}"'], set()),  # any server's: it may be the digest of anything
        (["Digest: id-sha-256=abc, foo", "Digest: ", "X-Linked-ETag: "], set()),
    ],
)  # fmt: skip
def test_each_header_by_its_own_form(headers, digests):
    assert stated(headers) == {(algorithm, digest.hex()) for algorithm, digest in digests}


def test_of_a_part_only_what_is_about_the_file():
    about_the_part = [f"Content-MD5: {text(MD5)}", f"Content-Digest: sha-256=:{text(SHA256)}:"]
    assert len(stated(about_the_part)) == 2
    assert stated(about_the_part, whole=False) == set()
    assert stated([f"x-goog-hash: md5={text(MD5)}"], whole=False) == {("md5", MD5.hex())}


@pytest.mark.parametrize("value", ["md5=", "md5=%%%", "md5=abcd", f"md5={text(SHA256)}"])
def test_a_digest_that_cannot_be_read_is_no_files(value):
    headers = email.message_from_string(f"x-goog-hash: {value}\n\n")
    (digest,) = stated_digests(headers, whole=True)
    wrong = wrong_digest([digest], lambda name: data_digest(DATA, name))
    assert wrong.startswith("has the md5 ")
    assert wrong.endswith("as the server's x-goog-hash states")


def test_digests_of_data_and_of_files(tmp_path):
    known = {"md5": MD5, "sha1": SHA1, "sha256": SHA256, "sha512": SHA512, "crc32c": CRC32C}
    (tmp_path / "a").write_bytes(DATA)
    for name, digest in known.items():
        assert data_digest(DATA, name) == file_digest(tmp_path / "a", name) == digest.hex()
    assert published_digest(None) == ()
    for digits in (SHA256.hex(), SHA256.hex()[:8]):
        right = published_digest(f"sha256:{digits}")
        assert wrong_digest(right, lambda name: data_digest(DATA, name)) == ""
        assert "as published" in wrong_digest(right, lambda name: data_digest(b"", name))

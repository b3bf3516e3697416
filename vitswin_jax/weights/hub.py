"""The Hugging Face hub through its own package: reading a repository, and why the hub refuses.

Addresses, tokens, the cache and offline mode are the package's own (`HF_ENDPOINT`, `HF_TOKEN`,
`HF_HOME`, `HF_HUB_OFFLINE`). `publish.py` writes to the hub.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.download import has_digest
from vitswin_jax.weights.formats.read import FOLDER_FILES, shards_of

HUB = "hf-hub:"
"""What a name on the Hugging Face hub begins with: `hf-hub:org/name[@revision]`."""

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
"""What timm and transformers write beside weights."""

TOKEN = "the token of HF_TOKEN or of `hf auth login`"
_FAILS = "the hub has an error of its own; try again later"
_OTHER = (
    "the server does not answer as the hub does; is HF_ENDPOINT right, or does the network ask for "
    "a login?"
)

_UNREACHED = "the hub cannot be reached; nothing is published; check the network"
_UNANSWERED = "the hub did not answer in time; nothing is published; repeat the command"

_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")
"""The status in an exception of hf_xet, which has no other place for it."""

Reasons = Mapping[str | int, str]
"""Classes of exceptions and statuses of answers -> what is wrong, and what would be right."""

_ANY: Reasons = {
    401: f"the hub does not accept {TOKEN}; make a new one in the settings of your account",
    402: "the hub asks for payment: the storage or the plan of the account does not allow it",
    408: "the hub did not answer in time; try again",
    413: "the hub refuses it as too large",
    429: "the hub had too many requests; try again in some minutes",
    **dict.fromkeys((500, 502, 503, 504), _FAILS),
    **dict.fromkeys(("FileMetadataError", "JSONDecodeError", "KeyError"), _OTHER),
}
READING: Reasons = {
    "OfflineModeIsEnabled": "is not in the hub's cache, and HF_HUB_OFFLINE is set",
    "GatedRepoError": "is gated: accept its licence on the hub, and set HF_TOKEN",
    "DisabledRepoError": "is disabled on the hub",
    "RevisionNotFoundError": "has no such revision; give one of its branches, tags or commits",
    "RepositoryNotFoundError": "is no repository of the hub, or a private one, for HF_TOKEN",
    "HFValidationError": "is no name of a repository; give hf-hub:ORGANISATION/NAME[@REVISION]",
    **_ANY,
    403: f"{TOKEN} may not read it",
    404: "is no repository of the hub",
    "LocalEntryNotFoundError": "is not in the hub's cache, and the hub cannot be reached",
    "EntryNotFoundError": f"has none of {', '.join(FOLDER_FILES)}",
    "ConnectionError": "cannot be reached; check the network",
    **dict.fromkeys(("TimeoutError", "TimeoutException"), "did not answer in time; try again"),
    "TransportError": "cannot be reached; check the network",
}
"""Why nothing was read; the first that fits is the one to report."""

WRITING: Reasons = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and a push needs the network",
    "LocalTokenNotFoundError": "a push needs a token; set HF_TOKEN, or use `hf auth login`",
    "HFValidationError": "is no name of a repository; give USER/NAME or ORGANISATION/NAME",
    "DisabledRepoError": "is disabled on the hub",
    **_ANY,
    403: f"{TOKEN} may not write there; it needs the right to write to this user's repositories",
    "BadRequestError": "the hub refuses the name or the metadata of the card; is the licence one "
    "of https://huggingface.co/docs/hub/repositories-licenses?",
    409: "has changed meanwhile; repeat the command",
    412: "has changed meanwhile; repeat the command",
    "RepositoryNotFoundError": f"{TOKEN} can neither make the repository nor write to it",
    404: "the server lacks something that a push needs; is HF_ENDPOINT right? If it has no Xet "
    "storage, set HF_HUB_DISABLE_XET=1",
    "ValueError": "the hub does not take a file of it; is it larger than the account may store?",
    "ConnectionError": _UNREACHED,
    **dict.fromkeys(("TimeoutError", "TimeoutException"), _UNANSWERED),
    "TransportError": _UNREACHED,
}
"""Why nothing was written; the first that fits is the one to report."""


def need_package(name: str) -> None:
    """Raises UserError, which says how to install it, where the hub's package is missing."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{name}: needs the package huggingface_hub; pip install 'vitswin_jax[hub]'."
        ) from error


def download(name: str) -> tuple[Path, dict[str, str]]:
    """Returns the weights file of `org/name[@revision]` in the hub's cache, and its provenance.

    Its configurations are beside it. What is not in the cache is downloaded. Raises UserError, in
    one line, where that is not possible.
    """
    need_package(f"{HUB}{name}")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    which = {"revision": revision or None}
    cut_off = False  # from the hub, which is waited for once

    def get(file: str) -> Path:
        before = try_to_load_from_cache(repository, file, **which)
        path = Path(hf_hub_download(repository, file, **which, local_files_only=cut_off))
        if str(path) != before:
            check_blob(path)
        return path

    with in_one_line(f"{HUB}{name}", READING, otherwise="cannot be downloaded"):
        missing: Exception | None = None
        for weights in FOLDER_FILES:
            try:
                file = get(weights)
                break
            except LocalEntryNotFoundError as error:
                missing, cut_off = missing or error, True
            except EntryNotFoundError:
                continue
        else:
            raise missing or EntryNotFoundError(name)
        for shard in _shards(file):
            get(shard)
        for beside in (CONFIG, PROCESSOR):
            with contextlib.suppress(EntryNotFoundError):
                get(beside)
    return file, {"hub": repository, "revision": file.parent.name}  # .../snapshots/COMMIT/FILE


def _shards(file: Path) -> list[str]:
    return sorted(set(shards_of(file).values())) if file.suffix == ".json" else []


def check_blob(path: Path) -> None:
    """Compares a file that came from the hub with the SHA-256 that the hub's cache calls it by.

    The hub's package compares its size only. A file that differs is removed, and UserError raised.
    """
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name) or has_digest(blob, f"sha256:{blob.name}"):
        return  # small files have git's name, or none
    for each in {path, blob}:
        each.unlink()
    raise UserError(
        f"{path.name}: the download does not have the sha256 {blob.name[:8]}... that the hub "
        "states; it is removed."
    )


@contextlib.contextmanager
def in_one_line(name: str, reasons: Reasons, *, otherwise: str) -> Iterator[None]:
    """Makes a UserError, `name: reason.`, of any exception that the hub's package raises.

    `otherwise` is the reason where the table has none. What the package logs is held back, for it
    has addresses that are signed; its bars are shown on a terminal only.
    """
    try:
        with _quiet():
            yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # of the hub's package, of its client, or of the system
        reason = reason_of(error, reasons, otherwise)
        raise UserError(f"{name}: {reason}{'' if reason.endswith('?') else '.'}") from error


def reason_of(error: BaseException, reasons: Reasons, otherwise: str) -> str:
    """Returns the first reason of a table that fits an exception or one that it was raised from."""
    found: set[str | int] = set()
    system = ""
    cause: BaseException | None = error
    while cause is not None:
        found |= {kind.__name__ for kind in type(cause).__mro__}
        found |= {getattr(getattr(cause, "response", None), "status_code", "")}
        found |= {int(status) for status in _STATUS.findall(str(cause))}
        system = system or (isinstance(cause, OSError) and cause.strerror) or ""
        cause = cause.__cause__ or cause.__context__
    known = next((reason for mark, reason in reasons.items() if mark in found), None)
    return known or f"{otherwise} ({system or type(error).__name__})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the lines of the hub's package, and its bars where nobody would see them.

    `HF_HUB_VERBOSITY` and `HF_HUB_DISABLE_PROGRESS_BARS` decide where they are set.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    log = logging.getLogger("huggingface_hub")
    level, hides = log.level, not (sys.stderr and sys.stderr.isatty())
    hides = hides and not are_progress_bars_disabled()
    hides = hides and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "HF_HUB_VERBOSITY" not in os.environ:
            log.setLevel(logging.CRITICAL)
        if hides:
            disable_progress_bars()
        try:
            yield
        finally:
            log.setLevel(level)
            if hides:
                enable_progress_bars()

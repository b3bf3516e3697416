"""A model as a repository of the Hugging Face hub: its files, its card, and one commit."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from vitswin_jax.core.atomic import writing
from vitswin_jax.core.choices import one_of
from vitswin_jax.core.json import read_json
from vitswin_jax.core.signals import removed_at_end
from vitswin_jax.core.types import Params, UserError, listed
from vitswin_jax.core.version import __version__
from vitswin_jax.models.registry import family_of
from vitswin_jax.models.unlabelled import UnlabelledModel
from vitswin_jax.weights.card import LIBRARIES, TAG, Card
from vitswin_jax.weights.files import write_model
from vitswin_jax.weights.hub import CONFIG, PROCESSOR, WRITING, in_one_line, need_package
from vitswin_jax.weights.metadata import Metadata, public, without_accuracy
from vitswin_jax.weights.parity import Parity, compare_written
from vitswin_jax.weights.runs import WEIGHTS
from vitswin_jax.weights.sources.preprocess import preprocess_of

CARD, PAGE = "README.md", "report.html"
WRITTEN = frozenset({WEIGHTS, CONFIG, PROCESSOR, CARD, PAGE})
"""The files that a push may write; a later one removes those that it does not write."""

_HUBS_OWN = ".gitattributes"
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """A push that has ended."""

    address: str
    """Of the repository, for a browser."""
    commit: str
    format: str
    """native, timm or huggingface."""
    files: tuple[str, ...]
    parity: Parity
    otherwise: str
    """A line about what the library's own code computes in another way; "" if it does not."""


@dataclass(frozen=True)
class Repository:
    """A repository that may be written to, as the hub has it now."""

    name: str
    private: bool
    commit: str | None = None
    """Its newest; None: there is no such repository yet."""
    files: frozenset[str] = frozenset()


def check_repository(name: str, *, private: bool = False, overwrite: bool = False) -> Repository:
    """Returns a repository of the hub, which need not exist, that a push may write to.

    Raises UserError, in one line: without the hub's package, a token or the network, for a name
    that is none, for one that exists in public where `private` is asked for, and for one with
    files that no push wrote, unless `overwrite`.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name of a repository; give USER/NAME or ORGANISATION/NAME."
        )
    need_package(name)
    from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import get_token, validate_repo_id

    with in_one_line(name, WRITING, otherwise="cannot be looked up on the hub"):
        validate_repo_id(name)
        if get_token() is None:
            raise LocalTokenNotFoundError
        try:
            info = _api().model_info(name)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # else there is none that the token may see
                raise
            return Repository(name, private)
    if private and not info.private:
        raise UserError(
            f"{name}: exists and is public, and a push makes no repository private; give another "
            "name, or make it private on the hub."
        )
    files = {each.rfilename for each in info.siblings or ()} - {_HUBS_OWN}
    others = files if TAG not in (info.tags or ()) else files - WRITTEN
    if others and not overwrite:
        raise UserError(
            f"{name}: exists and has {listed(sorted(others))}, which no push wrote; give another "
            "name, or use `vitswin push --overwrite`, which replaces files of the same names and "
            "keeps the others."
        )
    return Repository(name, private, info.sha, frozenset(files))


def check_publishable(model: nn.Module, format: str | None, *, origin: str) -> None:
    """Raises UserError for a format that the hub has no library for, and a model with a decoder."""
    if format is not None:
        one_of("format", format, tuple(LIBRARIES))
    if isinstance(model, UnlabelledModel):
        raise UserError(
            f"{origin}: a model with its decoder is not published; give its encoder, as "
            "load_pretrained returns it."
        )


def push(
    repository: Repository,
    model: nn.Module,
    variables: Mapping[str, Params],
    metadata: Metadata,
    *,
    format: str | None = None,
    licence: str | None = None,
    page: Path | None = None,
    message: str | None = None,
) -> Pushed:
    """Writes a model's files and its card to a repository of the hub, as one commit.

    `metadata` is that of `files.describe`. `format` is native, timm or huggingface; None: the first
    of timm, huggingface and native that has the model and computes it as we do. `page` is the page
    of the run that trained it. Nothing is published before all of it is uploaded. Raises UserError,
    in one line, where the format cannot have the model, and where the hub refuses.
    """
    check_publishable(model, format, origin=repository.name)
    metadata = dataclasses.replace(metadata, provenance=public(metadata.provenance))
    with _temporary_folder() as folder:
        format, path, otherwise = _write(folder, model, variables, metadata, format)
        if otherwise:  # a measured accuracy is that of the same function
            provenance = without_accuracy(metadata.provenance)
            metadata = dataclasses.replace(metadata, metrics={}, provenance=provenance)
        parity = compare_written(path, metadata.name, model, variables)
        if not parity.same:
            raise UserError(f"{repository.name}: is not pushed; read back, the {parity}.")
        files: dict[str, Path | bytes] = {each.name: each for each in _files_of(path)}
        if page is not None:
            files[PAGE] = page
        files[CARD] = (
            Card(
                repository=repository.name,
                family=family_of(model),
                metadata=metadata,
                preprocess=preprocess_of(model, metadata),
                parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
                format=format,
                config=read_json(path / CONFIG, {}) if path.is_dir() else {},
                parity=parity,
                otherwise=otherwise,
                licence=licence,
                report=None if page is None else PAGE,
            )
            .text()
            .encode()
        )
        address, commit = _upload(repository, files, message or f"{metadata.name} by {TAG}")
    return Pushed(address, commit, format, tuple(sorted(files)), parity, otherwise)


def _write(
    folder: Path,
    model: nn.Module,
    variables: Mapping[str, Params],
    metadata: Metadata,
    format: str | None,
) -> tuple[str, Path, str]:
    """Writes a model in a format; returns which, the file or the folder, and `otherwise`."""
    wanted = tuple(LIBRARIES) if format is None else (format,)
    for each in wanted:
        path = folder / WEIGHTS if each == "native" else folder / each
        try:
            otherwise = write_model(path, model, variables, format=each, metadata=metadata)
        except UserError:
            if each == wanted[-1]:
                raise
            continue
        if not otherwise or each == wanted[-1]:
            break
    return each, path, otherwise


def _files_of(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def _upload(
    repository: Repository, files: Mapping[str, Path | bytes], message: str
) -> tuple[str, str]:
    """Makes the repository if there is none, and one commit; returns its address and the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name, api = repository.name, _api()
    gone = sorted((repository.files & WRITTEN) - files.keys())
    with in_one_line(name, WRITING, otherwise="cannot be uploaded"):
        # None: as the organisation has it, else public.
        address = api.create_repo(name, private=repository.private or None, exist_ok=True)
        done = api.create_commit(
            name,
            [
                *(CommitOperationAdd(file, content) for file, content in sorted(files.items())),
                *(CommitOperationDelete(file) for file in gone),
            ],
            commit_message=message,
            parent_commit=repository.commit,
        )
    return str(address), str(done.oid)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name=TAG, library_version=__version__)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Gives a folder that is removed at the end, or when a signal ends the process."""
    with writing(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="vitswin-") as name:
        removed_at_end.add(name)
        try:
            yield Path(name)
        finally:
            removed_at_end.discard(name)

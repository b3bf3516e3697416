"""Locations of weights: a file, a folder, a run, a published name or a repository of the hub."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.store import is_url
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError, listed
from vitswin_jax.weights.download import fetch, has_digest
from vitswin_jax.weights.formats.foreign import refuse_folder
from vitswin_jax.weights.formats.orbax import is_checkpoint
from vitswin_jax.weights.formats.read import FOLDER_FILES
from vitswin_jax.weights.hub import HUB, download
from vitswin_jax.weights.published import Published, find_published, near_published, published
from vitswin_jax.weights.runs import WEIGHTS, is_run, newest_checkpoint, weights_of_run
from vitswin_jax.weights.stored import local_weights

log = logger(__name__)


@dataclass(frozen=True)
class Located:
    """A weights file, and what is known of it beside what it shows."""

    file: Path
    variant: str | None = None
    """What its model is called."""
    images: Mapping[str, Any] | None = None
    """The fields of `Preprocess`, but for the size: how its model is given images."""
    beside: Path | None = None
    """The folder with its `config.json`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    """Which of several copies of the model is meant: the KEY of `FILE@KEY`."""


def split_key(name: str) -> tuple[str, str | None]:
    """Returns the path or published name and the KEY of `NAME@KEY`; a path that exists has none."""
    front, at, key = name.rpartition("@")
    if not at or Path(name).expanduser().exists():
        return name, None
    known = Path(front).expanduser().exists() or find_published(front) is not None
    return (front, key) if known else (name, None)


def locate(path: str | os.PathLike[str]) -> Located:
    """Returns the weights file of a path, a folder, a run, a published name or a hub's name.

    A path that exists wins. `WORKDIR@STEP` and `WORKDIR@best` choose weights of a run, and
    `PATH@KEY` one of several copies in a file. What is not in the cache is downloaded. Raises
    UserError where there is nothing, with the nearest name that is published.
    """
    name = str(path)
    if is_url(name):
        name = local_weights(name)
    try:
        path = Path(name).expanduser()
        is_folder = path.is_dir()
    except (OSError, RuntimeError) as error:  # a name of 300 characters; ~somebody
        raise UserError(f"{listed([name])}: no such file or folder can be.") from error
    if is_folder:
        return _in_folder(path)
    if path.exists():
        return _local(path)
    if name.startswith(HUB):
        return _on_hub(name.removeprefix(HUB))
    front, key = split_key(name)
    if key is not None:
        if is_run(workdir := Path(front).expanduser()):
            return Located(weights_of_run(workdir, key))
        return dataclasses.replace(locate(front), key=key)
    if (row := find_published(name)) is not None:
        file = cache_dir() / "weights" / Path(row.name).with_name(row.file)
        record = fetch(row.address, file, digest=row.digest)
        return _published(file, row, sha256=record["sha256"])
    hint = near_published(name) if name.count("/") == 1 and not path.suffix else "."
    raise UserError(f"{name}: no such file or folder; a weights file or a workdir is needed{hint}")


def _in_folder(path: Path) -> Located:
    for name in FOLDER_FILES:
        if (file := path / name).exists():
            return _beside(file)
    if is_checkpoint(path):
        return Located(path)
    if (newest := newest_checkpoint(path)) is not None:
        return Located(newest)
    refuse_folder(path)
    raise UserError(f"{path}: has no {WEIGHTS}; a run writes it at its first evaluation.")


def _local(path: Path) -> Located:
    """Returns a file, as a row of the table where it has its digest: a name proves nothing."""
    version = path.stat().st_size, path.stat().st_mtime_ns
    for row in published().values():
        if row.file == path.name and row.digest:
            if _has_digest(path, row.digest, version):
                return _published(path, row)
            log.info(
                "%s: has the name of %s but other contents, so it is read as a file of your own",
                path,
                row.name,
            )
    return _beside(path) if path.name in FOLDER_FILES else Located(path)


@functools.lru_cache(maxsize=64)
def _has_digest(path: Path, digest: str, version: tuple[int, int]) -> bool:
    """Returns whether a file of that size and time has a digest; reads it once."""
    del version
    return has_digest(path, digest)


def _published(file: Path, row: Published, **seen: str | int) -> Located:
    facts = {
        "published": row.name,
        "address": row.address,
        "digest": row.digest,
        "class_list": row.class_list,
        "expected_top1": row.top1,
        "expected_top1_by": row.top1_by,
        **seen,
    }
    provenance = {key: value for key, value in facts.items() if value is not None}
    return Located(file, row.variant, row.images, provenance=provenance)


def _on_hub(name: str) -> Located:
    file, provenance = download(name)
    return _beside(file, **provenance)


def _beside(file: Path, **provenance: str) -> Located:
    return Located(file, beside=file.parent, provenance=provenance)

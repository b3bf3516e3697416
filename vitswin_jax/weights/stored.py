"""Runs in object stores: copies of the files that a command reads of one, in the cache."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.json import parse_json, read_json
from vitswin_jax.core.store import Store, Stored, folder_of, is_url
from vitswin_jax.core.terminal import logger, show_as
from vitswin_jax.core.types import UserError
from vitswin_jax.weights.runs import BEST, CHECKPOINTS, CONFIG, METRICS, WEIGHTS

log = logger(__name__)

LEASE = ".run.json"
"""The object by which a process holds a workdir in a store (`train.keep.lease`)."""
_OF_SET = re.compile(rf"{CHECKPOINTS}/(0|[1-9][0-9]{{0,17}})(?:\.json|/.+)", re.DOTALL)
_MARKS = ".marks.json"
_FILES = {
    "type": "object",
    "required": ["files"],
    "properties": {
        "files": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
    },
}
_NUMBERS = re.compile(
    rf"(?:.*/)?(?:{CONFIG}|{re.escape(METRICS)}|{re.escape(LEASE)}|goodput/[^/]+)"
)

Sets = dict[int, dict[str, int]]
"""The files of checkpoints, with their sizes in bytes, by step."""


def step_of(name: str) -> int | None:
    """Returns the step of the checkpoint that an object belongs to, None where it is no such.

    >>> step_of("checkpoints/30/params/d/1f"), step_of("checkpoints/30.json"), step_of("a.json")
    (30, 30, None)
    """
    found = _OF_SET.fullmatch(name)
    return None if found is None else int(found[1])


def marker_of(step: int) -> str:
    """Returns the name of the object that lists a checkpoint's files, and is written last."""
    return f"{CHECKPOINTS}/{step}.json"


def files_of(sets: Sets) -> set[str]:
    """Returns the names of the objects of checkpoints, without those that list them."""
    return {f"{CHECKPOINTS}/{step}/{file}" for step, files in sets.items() for file in files}


def sets_in(store: Store, there: Mapping[str, Stored]) -> Sets:
    """Returns the whole checkpoints of a run; one that lacks a file is named, and left out."""
    sets: Sets = {}
    for name in sorted(there):
        step = step_of(name)
        if step is None or name != marker_of(step):
            continue
        text = store.read(name)
        if text is None:
            continue
        place = f"{store.url}/{name}"
        files = parse_json(text, _FILES, origin=place)["files"]
        base = f"{CHECKPOINTS}/{step}/"
        wrong = [
            file
            for file, size in files.items()
            if f"{base}{file}" not in there or there[f"{base}{file}"].size != size
        ]
        if wrong or any(part in ("..", "") for file in files for part in file.split("/")):
            log.warning("%s: lists files that are not there; step %d is left out.", place, step)
        else:
            sets[step] = files
    return sets


def local_weights(name: str) -> str:
    """Returns the path of WEIGHTS that are in a store, copied here; other names as they are.

    They are `URL`, `URL@STEP` or `URL@best` of a run, or the address of a file. What has not
    changed since the last time is not copied again. Raises UserError where there is nothing.
    """
    if not is_url(name):
        return name
    url, at, which = name.rpartition("@")
    url = (url if at else name).rstrip("/")
    store = Store(url)
    there = store.list()
    if not there:
        return _local_file(url, name)
    sets = sets_in(store, there)
    files = {each for each in there if step_of(each) is None and _is_for_weights(each)}
    chosen = set[int]()
    if which.isdecimal():
        chosen = {int(which)} & sets.keys()
    elif not at and WEIGHTS not in there:
        chosen = {max(sets)} if sets else set()
    files |= files_of({step: sets[step] for step in chosen})
    if not files:
        raise UserError(f"{url}: has no weights and is no workdir of a run.")
    folder = _copied(store, there, files)
    for step in sets:
        (folder / CHECKPOINTS / str(step)).mkdir(parents=True, exist_ok=True)
    return f"{folder}@{which}" if at else str(folder)


def _is_for_weights(name: str) -> bool:
    return name in (WEIGHTS, BEST, CONFIG, METRICS, "report.html", "model.safetensors.index.json")


def _local_file(url: str, name: str) -> str:
    """Returns the path of a copy of one file."""
    parent, _, last = url.rpartition("/")
    if is_url(f"{parent}/") and parent.partition("://")[2]:
        store = Store(parent)
        there = store.list()
        if last in there:
            return str(_copied(store, there, {last}) / last)
    raise UserError(f"{name}: no such object; a weights file or a run's workdir is needed.")


def local_numbers(url: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns a folder with configs and numbers of the runs at and below an address.

    Other paths are returned as they are.
    """
    if not is_url(url):
        return url
    store = Store(str(url))
    there = store.list()
    return _copied(store, there, {name for name in there if _NUMBERS.fullmatch(name)})


def trains_there(folder: Path) -> bool | None:
    """Returns whether the run of a folder by `local_numbers` holds its workdir.

    None for a folder that is no such copy. A killed process holds it until another one resumes.
    """
    if not (folder / LEASE).is_file():
        return None
    return bool(read_json(folder / LEASE, {"type": "object"}).get("trains"))


def send_page(url: str, page: Path) -> str:
    """Writes a page to the folder of an address; returns its address."""
    store = Store(url)
    store.send({page.name: page})
    return f"{store.url}/{page.name}"


def _copied(store: Store, there: Mapping[str, Stored], names: Collection[str]) -> Path:
    """Returns a folder that has these objects and no others; reads those that have changed."""
    folder = folder_of(store.url, "read")
    show_as(folder, store.url)
    marks: dict[str, list] = {}
    with contextlib.suppress(UserError):
        marks = read_json(folder / _MARKS, {"type": "object"})
    now = {name: [there[name].size, there[name].mark] for name in names}
    known = {name for name in names if marks.get(name) == now[name] and (folder / name).is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in marks.keys() - names:
        (folder / name).unlink(missing_ok=True)
    steps = {name.split("/")[1] for name in names if step_of(name) is not None}
    for path in (folder / CHECKPOINTS).glob("*"):
        if path.name not in steps:  # its files are gone, or it had none
            shutil.rmtree(path, ignore_errors=True)
    store.fetch({name: folder / name for name in sorted(set(names) - known)})
    with replacing(folder / _MARKS) as temporary:
        temporary.write_text(json.dumps(now) + "\n", encoding="utf-8")
    return folder

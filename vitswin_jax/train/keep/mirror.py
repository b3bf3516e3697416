"""A run whose workdir is in an object store: it works in a folder that is copied there.

The folder is on this host's disk. A thread copies what has changed every few seconds, and all of it
at the end. A checkpoint is a set of objects, which counts once an object that lists them, written
last, is there; so a process that is killed leaves a store from which any host resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.store import Store
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError, counted
from vitswin_jax.train.keep.lease import Lease
from vitswin_jax.train.keep.workdir import STOP
from vitswin_jax.weights.runs import CHECKPOINTS
from vitswin_jax.weights.stored import LEASE, Sets, files_of, marker_of, sets_in, step_of

log = logger(__name__)

PERIOD = 5.0
"""Seconds between two looks at what has changed."""
_LAST_TRIES = (0.0, 10.0)  # seconds before each try to copy what is left at the end
_NAME = "copy"
_ROWS = ".jsonl"
_UNFINISHED = re.compile(r"(^|/)\.|orbax-checkpoint-tmp")

Seen = tuple[int, int]
"""Size and time of a file."""


class Mirror:
    """The copy of a workdir on this host's disk, and what has been sent of it."""

    def __init__(self, store: Store, home: Path) -> None:
        """`home` is a folder for the copy, its name, and what is being sent."""
        self.folder = home / "run"
        self._store, self._name, self._sending = store, home / _NAME, home / "sending"
        self._copy = f"this host's copy of {store.url} below {cache_dir()} (VITSWIN_CACHE)"
        self._lease = Lease(store, self._ask_to_end)
        self._sent: dict[str, Seen] = {}
        self._there: set[str] = set()
        self._sets: Sets = {}
        self._end = threading.Event()
        self._failed = False

    @staticmethod
    def name_in(home: Path) -> str:
        """Returns the name of the copy in a folder, "" where there is none."""
        try:
            return (home / _NAME).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Copies the workdir here, and what changes during the block, and at its end, there."""
        try:
            self._begin()
        except BaseException:
            with contextlib.suppress(UserError):
                self._lease.give_up()
            raise
        thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        thread.start()
        failed = True
        try:
            yield
            failed = False
        finally:
            self._end.set()
            thread.join()
            self._finish(failed=failed)

    def _begin(self) -> None:
        """Takes the workdir, and makes the copy equal to it unless this host wrote there last."""
        ours = self.name_in(self._name.parent)
        owner = self._lease.owner()
        same = bool(ours) and ours == owner and self.folder.is_dir()
        self._lease.take(ours if same else uuid.uuid4().hex)
        with writing(self._copy):
            shutil.rmtree(self._sending, ignore_errors=True)
            there = self._store.list()
            self._sets = sets_in(self._store, there)
            self._there = set(there) - {LEASE, STOP}
            if same:  # other objects may be another command's, such as pages
                self._there = {name for name in self._there if step_of(name) is not None}
                log.info("%s: this host wrote there last, so its copy is used.", self._store.url)
                return
            self._name.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self._fetch()
            with replacing(self._name) as temporary:
                temporary.write_text(self._lease.copy + "\n", encoding="utf-8")

    def _fetch(self) -> None:
        """Copies the workdir here; files of checkpoints that are not whole are left out."""
        plain = {name for name in self._there if step_of(name) is None}
        files = {name: self.folder / name for name in sorted(plain | files_of(self._sets))}
        began = time.monotonic()
        self._store.fetch(files)
        for name in plain:
            self._sent[name] = _seen(self.folder / name)
        if files:
            log.info(
                "%s: %s copied here in %.1f s.",
                self._store.url,
                counted(len(files), "object"),
                time.monotonic() - began,
            )

    def _ask_to_end(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / STOP).touch()

    def _run(self) -> None:
        while not self._end.wait(PERIOD):
            if self._lease.lost is not None:
                return
            try:
                self.send()
            except UserError as error:
                if not self._failed:
                    log.warning(
                        "%s Training continues, and what is missing there is copied later.", error
                    )
                self._failed = True
            else:
                if self._failed:
                    log.info("%s: has all files again.", self._store.url)
                self._failed = False

    def _finish(self, *, failed: bool) -> None:
        """Copies what is left; raises UserError where it cannot, or logs it after an error."""
        lost = self._lease.lost
        error = None
        if lost is not None:
            error = f"{self._store.url}: {lost} has taken it over, and this run ended"
        for wait in () if lost is not None else _LAST_TRIES:
            time.sleep(wait)
            try:
                self.send()
                self._lease.give_up()
                return
            except UserError as problem:
                error = str(problem).rstrip(".")
        with contextlib.suppress(UserError):
            self._lease.give_up()
        left = "" if lost else "; the files are on this host, and the same command copies them"
        if failed:
            log.warning("%s%s.", error, left)
        else:
            raise UserError(f"{error}{left}.")

    def send(self) -> None:
        """Copies what has changed since the last call; raises StoreError where it cannot."""
        local = self._local_sets()
        changed = {
            step: files
            for step, files in local.items()
            if step not in self._sets or not files.items() <= self._sets[step].items()
        }
        try:
            with writing(self._copy):
                linked = {step: each for step, each in changed.items() if self._link(step, each)}
                plain = self._send_plain()  # before the checkpoints, which need the rows before
            for step, files in linked.items():
                self._send_set(step, files)
        finally:
            shutil.rmtree(self._sending, ignore_errors=True)
        self._remove(plain, local)

    def _local_sets(self) -> Sets:
        """Returns the files of this host's checkpoints with their sizes, by step."""
        sets: Sets = {}
        for path in _entries(self.folder / CHECKPOINTS):
            if path.name.isdecimal():
                sets[int(path.name)] = _sizes(path)
        return sets

    def _link(self, step: int, files: dict[str, int]) -> bool:
        """Keeps a checkpoint's files while they are sent; returns whether it is still whole."""
        folder, kept = self.folder / CHECKPOINTS / str(step), self._sending / str(step)
        try:
            for name in files:
                (kept / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(folder / name, kept / name)
            return _sizes(folder) == files
        except FileNotFoundError:  # it is removed just now
            return False

    def _send_set(self, step: int, files: dict[str, int]) -> None:
        marker = marker_of(step)
        if step in self._sets:
            self._store.remove([marker])
            del self._sets[step]
        base = f"{CHECKPOINTS}/{step}/"
        self._there |= {f"{base}{name}" for name in files}
        self._store.send({f"{base}{name}": self._sending / str(step) / name for name in files})
        text = json.dumps({"files": files}, sort_keys=True) + "\n"
        self._store.write(marker, text.encode())
        self._there.add(marker)
        self._sets[step] = files

    def _send_plain(self) -> set[str]:
        """Sends the other files that have changed; returns the names of all."""
        names = {name for name in _sizes(self.folder) if step_of(name) is None and name != STOP}
        whole = {}
        for name in sorted(names):
            path = self.folder / name
            try:
                seen = _seen(path)
                if self._sent.get(name) == seen:
                    continue
                if name.endswith(_ROWS) or ".tfevents." in name:  # it may grow just now
                    content = path.read_bytes()
                    if name.endswith(_ROWS):
                        content = content[: content.rfind(b"\n") + 1]
                    self._store.write(name, content)
                    self._sent[name] = seen
                else:
                    whole[name] = seen
            except FileNotFoundError:  # it was removed, or replaced
                continue
        kept = {}
        for number, name in enumerate(whole):  # a link keeps the file that is replaced meanwhile
            kept[name] = self._sending / "plain" / str(number)
            kept[name].parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.folder / name, kept[name])
            except FileNotFoundError:
                del kept[name]
        self._store.send(kept)
        self._sent |= {name: whole[name] for name in kept}
        self._there |= names
        return names

    def _remove(self, plain: set[str], local: Sets) -> None:
        """Removes from the store what is gone here, the lists of checkpoints first."""
        gone = self._sets.keys() - local.keys()
        self._store.remove([marker_of(step) for step in gone])
        for step in gone:
            del self._sets[step]
        kept = plain | files_of(self._sets) | {marker_of(step) for step in self._sets}
        self._store.remove(sorted(self._there - kept))
        self._there = kept
        self._sent = {name: seen for name, seen in self._sent.items() if name in plain}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of the files below a folder, without those that are being written."""
    sizes = {}
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path) / name
            relative = file.relative_to(folder).as_posix()
            if not _UNFINISHED.search(relative):
                with contextlib.suppress(FileNotFoundError):
                    sizes[relative] = file.stat().st_size
    return sizes


def _seen(path: Path) -> Seen:
    status = path.stat()
    return status.st_size, status.st_mtime_ns

"""Sets of a run's state on each host's own disk, saved more often than checkpoints.

Orbax's emergency checkpointing is not used: its CheckpointManager keeps nothing on the first of two
slices or more, and refuses one; its ReplicatorCheckpointManager waits for a daemon of GKE.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.json import read_json
from vitswin_jax.core.seal import checksum_of, seal
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.join import gather
from vitswin_jax.train.keep.local_file import parts_of, read_parts, read_set_meta, write_set
from vitswin_jax.train.keep.stored import (
    FINGERPRINT,
    agreed,
    check_same_arrays,
    checked,
    describe,
    trees_of,
)
from vitswin_jax.train.keep.workdir import DATASET, LOCAL, MAY_CHANGE, flatten
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import DamagedError

log = logger(__name__)

KEPT = 2
"""Sets that a host keeps; it writes one more before it removes the oldest."""
_FILE = re.compile(r"(0|[1-9][0-9]{0,17})\.safetensors")
_RUN = {
    "type": "object",
    "required": ["run"],
    "properties": {"run": {"type": "string", "minLength": 1, "maxLength": 64}},
}

Restored = tuple[TrainState, dict[str, Any]]


def identity(workdir: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the marks of a run's sets: a name of the run, and a digest of its config.

    The name is random, in a file of the workdir, so that a new run in the same place has another
    one. `config` is plain data; its keys that may change during a run do not count. All hosts call
    it together.
    """
    name = ""
    if jax.process_index() == 0:
        with contextlib.suppress(UserError):
            name = read_json(workdir / LOCAL, _RUN)["run"]
        if not name:
            name = uuid.uuid4().hex
            with contextlib.suppress(UserError), replacing(workdir / LOCAL) as temporary:
                temporary.write_text(json.dumps({"run": name}) + "\n", encoding="utf-8")
    flat = flatten(config)
    kept = {key: flat[key] for key in sorted(flat) if key not in {*MAY_CHANGE, DATASET}}
    digest = hashlib.sha256(json.dumps(kept, default=str).encode()).hexdigest()
    return {"run": gather(name)[0], "config": digest}


class LocalSets:
    """The newest sets of this host: one file each, whole or not there at all.

    The file of a step has this host's parts of each array, and in its header what a checkpoint
    states, sealed, with the checksums of the whole arrays. The hosts save after the same steps. A
    set is used if each host has its own parts of it on its disk.
    """

    def __init__(
        self,
        place: str,
        workdir: Path,
        *,
        owner: Mapping[str, str],
        data: Mapping[str, Any] | None,
        seconds: float,
        total_steps: int,
    ) -> None:
        """`place` is a folder on each host's disk; `owner` is the run's `identity`.

        A set is due each `seconds`. Sets of other data than `data`, a fingerprint, and those after
        `total_steps` are not used.
        """
        text = os.path.abspath(workdir)  # noqa: PTH100, keeps links: of the name, not of the place
        name = f"{workdir.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self._run = Path(place).expanduser().resolve() / name
        self._folder = self._run / f"host-{jax.process_index()}"
        self._owner, self._data, self._total_steps = dict(owner), _as_json(data), total_steps
        self._seconds, self._last = seconds, time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="local-sets")
        self._writing: Future[None] | None = None
        self._warned = False
        self._found: list[tuple[int, str]] | None = None
        self._files: dict[int, Path] = {}

    def due(self, step: int) -> bool:
        """Returns whether to save after this step; every host asks after each step."""
        idle = self._writing is None or self._writing.done()
        here = idle and time.monotonic() - self._last >= self._seconds
        if watch.current is not None:
            here = watch.current.saves_here(step, due=here)
        if here:
            self._last = time.monotonic()
        return here

    def save(self, state: TrainState, about: Mapping[str, Any]) -> None:
        """Copies this host's parts of a state, and starts to write them; all hosts call it.

        `about` is what a checkpoint of the step states, without its arrays. A set that cannot be
        written is one warning.
        """
        self.wait()
        meta = seal({**about, "owner": self._owner, "arrays": describe(state)})
        parts = parts_of(state)
        self._writing = self._pool.submit(self._write, int(about["step"]), parts, meta)

    def wait(self) -> None:
        """Waits until the last set is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, step: int, parts: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_set(self._path(step), parts, meta)
        except (OSError, UserError) as error:
            if not self._warned:
                self._warned = True
                reason = str(error) if isinstance(error, UserError) else error.strerror or error
                log.warning(
                    "local set of step %d: %s; training continues, with the checkpoints of its "
                    "workdir (run.local_dir).",
                    step,
                    str(reason).rstrip("."),
                )
            return
        steps = sorted(_steps_in(self._folder), reverse=True)
        self._remove(steps[KEPT:])

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.safetensors"

    def _remove(self, steps: Sequence[int]) -> None:
        for step in steps:
            with contextlib.suppress(OSError):
                self._path(step).unlink()

    def restore(self, layout: TrainState, after: int) -> Restored | None:
        """Returns the newest whole set of a step later than `after`, and what it states, or None.

        One line names each later set that is passed over, and why. All hosts call it, and each
        set is offered once.
        """
        if self._found is None:
            self._found = self._look()
        while self._found and self._found[0][0] > after:
            step, reason = self._found.pop(0)
            try:
                if reason:
                    raise DamagedError(reason)
                restored = self._read(step, layout)
            except DamagedError as error:
                log.info("local set of step %d: passed over: %s.", step, error)
            else:
                log.info("local set of step %d: used, from %s.", step, self._files[step].parent)
                return restored
        return None

    def begin(self, step: int) -> None:
        """Removes the sets that are later than the step from which the run resumes."""
        self._remove([later for later in _steps_in(self._folder) if later > step])
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():  # what a killed process left
                if not _FILE.fullmatch(path.name):
                    path.unlink()
        self._last = time.monotonic()

    def close(self) -> None:
        """Waits until all is written."""
        self.wait()
        self._pool.shutdown()

    def remove(self) -> None:
        """Removes the sets of a run that has ended with results."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._run.rmdir()  # unless another process of this machine has sets in it

    def _look(self) -> list[tuple[int, str]]:
        """Returns the steps of the sets, the newest first, each with why it is not used, or "".

        A host may have another number than before, so it also takes the sets of the others that
        its disk has, if they have its parts.
        """
        folders = [self._folder, *sorted(set(self._run.glob("host-*")) - {self._folder})]
        for folder in folders:
            for step in _steps_in(folder):
                self._files.setdefault(step, folder / f"{step}.safetensors")
        told = gather(json.dumps({str(step): self._judge(step) for step in self._files}))
        hosts = [json.loads(text) for text in told]
        reasons = {}
        for step in sorted({int(step) for host in hosts for step in host}, reverse=True):
            each = [host.get(str(step), ["is missing", 0]) for host in hosts]
            wrong = [
                f"host {host}: it {why}" if len(hosts) > 1 else f"it {why}"
                for host, (why, _) in enumerate(each)
                if why
            ]
            if not wrong and len({total for _, total in each}) > 1:
                wrong = ["the hosts have different ones"]
            reasons[step] = wrong[0] if wrong else ""
        return list(reasons.items())

    def _judge(self, step: int) -> tuple[str, int]:
        """Returns why this file of a step is of no use, or "", and a sum of its checksums."""
        try:
            meta = read_set_meta(self._files[step])
        except DamagedError as error:
            return str(error), 0
        owner = meta["owner"]
        if owner.get("run") != self._owner["run"]:
            return "is of another run", 0
        if owner.get("config") != self._owner["config"]:
            return "is of another config", 0
        if _as_json(meta["data"].get(FINGERPRINT)) != self._data:
            return "is of other data", 0
        if meta["step"] > self._total_steps:
            return f"is later than the run's end, step {self._total_steps}", 0
        return "", checksum_of(meta["arrays"])

    def _read(self, step: int, layout: TrainState) -> Restored:
        path = self._files[step]
        with agreed():
            meta = read_set_meta(path)
            try:
                check_same_arrays(path, meta, layout)
            except UserError as error:
                raise DamagedError("it is of another model or optimizer") from error
            trees = read_parts(path, trees_of(layout))
        return checked(trees, meta, layout), meta


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _steps_in(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)  # noqa: PTH208, names only
    except OSError:
        return []
    return [int(match[1]) for match in map(_FILE.fullmatch, names) if match]

"""Sets of a run's state on each host's own disk, saved more often than checkpoints.

Orbax's emergency checkpointing is not used: its CheckpointManager keeps nothing on the first of two
slices or more, and refuses one; its ReplicatorCheckpointManager waits for a daemon of GKE.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.json import read_json
from vitswin_jax.core.seal import seal
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.join import gather
from vitswin_jax.train.keep.copies import KEPT, Copies
from vitswin_jax.train.keep.local_file import parts_of, read_parts, read_set_meta, write_set
from vitswin_jax.train.keep.stored import (
    agreed,
    check_same_arrays,
    checked,
    describe,
    trees_of,
)
from vitswin_jax.train.keep.whole import (
    Found,
    SetsOf,
    clear,
    fault_of,
    keep_newest,
    look,
    path_in,
)
from vitswin_jax.train.keep.workdir import DATASET, LOCAL, MAY_CHANGE, flatten
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import DamagedError

log = logger(__name__)

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
    set is used if each host has its own parts of it on its disk, or gets them from another host.
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
        copies: bool = True,
    ) -> None:
        """`place` is a folder on each host's disk; `owner` is the run's `identity`.

        A set is due each `seconds`. With `copies`, a neighbour of each host keeps its sets too.
        Sets of other data than `data`, a fingerprint, and those after `total_steps` are not used.
        """
        text = os.path.abspath(workdir)  # noqa: PTH100, keeps links: of the name, not of the place
        name = f"{workdir.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self._run = Path(place).expanduser().resolve() / name
        self._owner, self._sets = dict(owner), SetsOf(owner, data, total_steps)
        self._shared = copies
        self._copies: Copies | None = None
        self._seconds, self._last = seconds, time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="local-sets")
        self._writing: Future[None] | None = None
        self._warned = False
        self._found: list[Found] | None = None

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
            with writing(self._path(step)):
                self._path(step).parent.mkdir(parents=True, exist_ok=True)
            write_set(self._path(step), parts, meta)
        except UserError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "local set of step %d: %s; training continues, with the checkpoints of its "
                    "workdir (run.local_dir).",
                    step,
                    str(error).rstrip("."),
                )
            return
        keep_newest(self._run, jax.process_index(), KEPT)
        if self._copies is not None:
            self._copies.offer(step, self._path(step))

    def _path(self, step: int) -> Path:
        return path_in(self._run, jax.process_index(), step)

    def restore(self, layout: TrainState, after: int) -> Restored | None:
        """Returns the newest whole set of a step later than `after`, and what it states, or None.

        One line names each later set that is passed over, and why. All hosts call it, and each
        set is offered once.
        """
        if self._found is None:
            if self._shared and jax.process_count() > 1:
                self._copies = Copies(self._run, layout)
            self._found = look(self._run, self._sets, layout, shared=self._copies is not None)
        while self._found and self._found[0].step > after:
            found = self._found.pop(0)
            parts = ""
            try:
                if found.reason:
                    raise DamagedError(found.reason)
                parts = self._fetch(found) if found.gets else ""
                restored = self._read(found.path, layout)
            except DamagedError as error:
                more = f" ({parts})" if parts else ""
                log.info("local set of step %d: passed over: %s%s.", found.step, error, more)
            else:
                more = f"; {parts}" if parts else ""
                place = found.path.parent
                log.info("local set of step %d: used, from %s%s.", found.step, place, more)
                return restored
        return None

    def begin(self, step: int) -> None:
        """Removes the sets that are later than the step from which the run resumes."""
        clear(self._run, step)
        self._last = time.monotonic()

    def close(self) -> None:
        """Waits until all is written here; a copy that is on its way is not kept."""
        self.wait()
        self._pool.shutdown()
        if self._copies is not None:
            self._copies.close()

    def remove(self) -> None:
        """Removes the sets of a run that has ended with results, on all hosts."""
        shutil.rmtree(self._run, ignore_errors=True)

    def _fetch(self, found: Found) -> str:
        """Gets the parts of the hosts that have none from the others; returns who got whose.

        All hosts call it. Raises DamagedError on all where one got none.
        """
        why, copies, here = "", self._copies, jax.process_index()
        if copies is not None and here in found.gets:
            why = copies.fetch(found) or fault_of(found.path, self._sets)
        for host, fault in enumerate(gather(why)):
            if fault:
                raise DamagedError(f"host {host}: it {fault}")
        return "; ".join(
            f"host {host} has its part from host {at}" for host, (at, _) in found.gets.items()
        )

    def _read(self, path: Path, layout: TrainState) -> Restored:
        with agreed():
            meta = read_set_meta(path)
            try:
                check_same_arrays(path, meta, layout)
            except UserError as error:
                raise DamagedError("it is of another model or optimizer") from error
            trees = read_parts(path, trees_of(layout))
        return checked(trees, meta, layout), meta

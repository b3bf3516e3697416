"""Checkpoints of parameters, optimizer, step and data iterator, by Orbax in the background."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from vitswin_jax.core.seal import seal
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.join import check_same, raising_together
from vitswin_jax.train.hosts.stragglers import WAITED
from vitswin_jax.train.keep.best import Best, score
from vitswin_jax.train.keep.hushed import hush_tracebacks
from vitswin_jax.train.keep.local import LocalSets, Restored
from vitswin_jax.train.keep.metrics import Window
from vitswin_jax.train.keep.stored import (
    FINGERPRINT,
    agreed,
    check_same_arrays,
    describe,
    read_state,
    trees_of,
)
from vitswin_jax.train.state import TrainState
from vitswin_jax.weights.formats.orbax import DamagedError, read_meta, steps_in

log = logger(__name__)

_LOST = re.compile(r"Gloo|TimeoutError|barrier|heartbeat|coordination service", re.IGNORECASE)


class Checkpoints:
    """The checkpoints of one run; a context manager that ends only when all is written.

    A step's checkpoint has the items `params`, `opt_state` and, where there is one, `ema` (arrays),
    `metrics` (JSON: what the step was tested with), and `meta` (JSON: the step, the next global
    batch of the data, which is all there is to the iterator's state, since its stream is a function
    of seed and position; the fingerprint of the data; the metrics of steps that are not logged yet;
    and shape, dtype and checksum of every array). What a killed process left
    half-written is never restored, nor is what was damaged later.

    The `newest` are kept, the `best` by `keep.best.score`, and those of every `every` steps.
    """

    def __init__(
        self,
        folder: Path,
        *,
        newest: int,
        best: int = 0,
        every: int | None = None,
        data: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        local: LocalSets | None = None,
    ) -> None:
        """`data` is the fingerprint of what the run trains on (`data.fingerprint`).

        `facts` are plain data that every checkpoint states: what makes weights of it
        (`weights.formats.orbax`), and the counts of the schedule. `local` has newer sets.
        """
        self._folder, self._data, self._facts = folder.resolve(), data, facts or {}
        self.local = local
        policies = [
            managers.LatestN(newest),
            managers.BestN(get_metric_fn=score, n=best, keep_checkpoints_without_metrics=False),
        ]
        if every is not None:
            policies.append(managers.EveryNSteps(every))
        self._options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            best_fn=score,  # or metrics would not be written
            preservation_policy=managers.AnyPreservationPolicy(policies),
            # A folder that cannot be made raises, and leaves no threads that wait for it.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._opened: ocp.CheckpointManager | None = None
        self._begun: int | None = None
        self._failed = False
        self.restored: dict[str, Any] = {"metrics": {}, "window": []}
        """What the restored checkpoint says: `metrics` and `window`, as they were saved."""

    @property
    def best(self) -> Best:
        """The best evaluation before the restored checkpoint; older versions recorded none."""
        return Best(*self.restored.get("best") or ())

    @property
    def restored_locally(self) -> bool:
        """Whether the state was read from a host's own disk."""
        return self.restored.get("owner") is not None

    def __enter__(self) -> Checkpoints:
        self._unhush = hush_tracebacks()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.local is not None:
                self.local.close()
            if self._opened is not None:
                self.wait()
                self._opened.close()
        finally:
            if not self._failed:  # or Orbax's threads have more to say until the program ends
                self._unhush()

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, which reads the folder when it is first used: damage is then aside."""
        if self._opened is None:
            try:
                self._opened = ocp.CheckpointManager(self._folder, options=self._options)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                if _LOST.search(repr(error)):
                    raise
                raise UserError(
                    f"{self._folder}: Orbax cannot open this folder; it has no checkpoints, or "
                    "one of them is damaged. Choose another --workdir."
                ) from error
        return self._opened

    def save(
        self,
        state: TrainState,
        *,
        next_batch: int,
        metrics: Mapping[str, float] | None = None,
        window: Window = (),
        best: Best | None = None,
        again: bool = False,
        local: bool = False,
    ) -> None:
        """Starts to write a state; where its step is on disk, it is left, or replaced if `again`.

        `metrics` is what it was tested with, if it was, and `window` has the metrics of steps that
        are not logged yet. Where `local`, it is only written to each host's own disk. Raises
        UserError where it, or the one before, cannot be written.
        """
        step = int(state.step)
        metrics = dict(metrics or {})
        data = {"next_batch": next_batch, FINGERPRINT: self._data}
        about = {**self._facts, "step": step, "data": data, "metrics": metrics}
        about["window"] = [list(each) for each in window]
        about["best"] = None if best is None or not best.step else list(best)
        if local and self.local is not None:
            self.local.save(state, about)
            return
        if step == self._manager.latest_step():
            if not again:
                return
            self._manager.delete(step)
        meta = seal({**about, "arrays": describe(state)})
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees_of(state).items()}
        began = time.monotonic()
        self.wait()
        jax.monitoring.record_event_duration_secs(WAITED, time.monotonic() - began)
        self._begun = step
        args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
        with self._one_line():
            # Forced, Orbax does not ask whether hosts are to stop, which counts steps of its own.
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits until all is written; raises UserError where it could not be."""
        with self._one_line():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if _LOST.search(repr(error)):  # of a host: what `joined` does with it is its business
                raise
            self._failed = True
            newest = self._manager.latest_step()
            left = "no other is there" if newest is None else f"the newest is of step {newest}"
            raise UserError(
                f"cannot write the checkpoint of step {self._begun} in {self._folder}: "
                f"{_reason(error)}; the run stops, and {left}."
            ) from error

    def restore_or(
        self, create: Callable[[], TrainState], layout: TrainState
    ) -> tuple[TrainState, int]:
        """Returns the newest whole checkpoint, laid out by `layout`, and its data's next batch.

        A newer set on the hosts' own disks is taken instead. Where there is none at all it returns
        what `create` does, and 0. Newer ones that are damaged are named and renamed. Raises
        UserError where all are damaged, or for another model's.
        """
        steps = steps_in(self._folder)
        check_same({f"steps in {self._folder}": steps})  # a network's folder may be late somewhere
        local = self.local
        newer = None if local is None else functools.partial(local.restore, layout)
        found = self._first_whole(steps, layout, newer=newer or (lambda after: None))
        if found is not None:
            self.restored |= found[1]
        state, step = (create(), 0) if found is None else (found[0], found[1]["data"]["next_batch"])
        if local is not None:
            local.begin(step)
        return state, step

    def restore_best(self, layout: TrainState) -> TrainState:
        """Returns the best whole checkpoint, without what is the optimizer's."""
        self.wait()
        best = self._manager.best_step()
        steps = sorted(self._manager.all_steps(), key=lambda step: (step != best, -step))
        found = self._first_whole(steps, layout, leave_out=("opt_state",))
        assert found is not None  # the run has saved
        return found[0]

    def _first_whole(
        self,
        steps: Iterable[int],
        layout: TrainState,
        *,
        leave_out: Iterable[str] = (),
        newer: Callable[[int], Restored | None] = lambda after: None,
    ) -> Restored | None:
        """Returns the first of some checkpoints that is whole; sets damaged ones aside.

        A state by `newer`, which is asked for one after each step, is taken instead. Of the
        checkpoints after what is taken in `steps`, only the metadata is read.
        """
        found, damaged = None, {}
        for step in steps:
            found = found or newer(step)
            folder = self._folder / str(step)
            try:
                with agreed():
                    meta = read_meta(folder)
                if found is None:
                    check_same_arrays(folder, meta, layout)
                    needed = layout.replace(**dict.fromkeys(leave_out))
                    found = read_state(folder, meta, needed), meta
            except DamagedError as error:
                damaged[folder] = str(error)
        found = found or newer(0)
        if found is None and damaged:
            each = "; ".join(f"{folder.name} ({reason})" for folder, reason in damaged.items())
            raise UserError(
                f"{self._folder}: every checkpoint is damaged: {each}. Remove the folder to start "
                "again, or choose another --workdir."
            )
        if found is None:
            return None
        for folder, reason in damaged.items():
            aside = _set_aside(folder)
            log.warning(
                "%s: damaged: %s; it is now %s, and step %s is used.",
                folder,
                reason,
                aside.name,
                found[1]["step"],
            )
        return found


def _set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that its step can be saved again; returns its new path."""
    names = (f"{folder.name}.damaged-{number}" for number in itertools.count(1))
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    with raising_together():
        try:
            if jax.process_index() == 0:
                folder.rename(aside)
        except OSError as error:
            raise UserError(
                f"{folder}: damaged, and cannot be renamed: {error.strerror}."
            ) from error
    return aside


def _reason(error: Exception) -> str:
    """Returns the reason of an error, without TensorStore's source locations."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0].rpartition(": ")[2].partition(" [")[0]

"""Training within a time: watches the pace of a run, and replans if it would miss its end."""

from __future__ import annotations

import ast
import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitswin_jax.core.rows import STEP, read_rows
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.results import Outcome
from vitswin_jax.train.keep.workdir import STOP
from vitswin_jax.train.run.inputs import open_data
from vitswin_jax.train.run.plan import Plan, make_plan
from vitswin_jax.trainer import train_and_evaluate
from vitswin_jax.tune.choose import Choice, Task, length
from vitswin_jax.tune.clock import Clock, Costs, evaluations_in
from vitswin_jax.tune.pace import Pace, read_pace
from vitswin_jax.tune.write import RECIPE, write_recipe
from vitswin_jax.weights.runs import METRICS

log = logger(__name__)

_LOOK = 0.25  # seconds between two looks at a run
_LATE, _EARLY = 0.05, 0.06
"""Shares of the time by which a run may miss its end before its end is planned anew."""
_ROUNDS = ((0.4, 0.8, True), (0.6, 0.92, False), None)
"""For each part of a run: between which shares of the time its end may be planned anew, and whether
a run that is too fast is, too. The last part goes to its end."""
_EVALUATION_COMPILES = 0.5  # times the start of a run, what its first evaluation takes besides
_KEPT = 0.1  # of a run's steps, by which a resumed one may miss those that fit
_UNKNOWN = Costs(step=1.0, evaluation=5.0, start=20.0)
_UNUSED = 0.08  # of the time, what a whole run leaves at most
_WORTH = 2.5  # times the cost of a start, what has to be left for another one


class Watch:
    """Looks at a run from a thread, and asks it to end where its end has to be planned anew."""

    def __init__(
        self,
        workdir: Path,
        clock: Clock,
        costs: Costs,
        *,
        total: int,
        every: int,
        judged: tuple[float, float, bool] | None,
    ) -> None:
        """`total` and `every` are the run's steps, and those between evaluations.

        `judged` is one of `_ROUNDS`.
        """
        self._workdir, self._clock, self._costs = workdir, clock, costs
        self._total, self._every, self._judged = total, every, judged
        self._called, self._begin = clock.spent, math.nan
        self._file = _file_number(workdir / METRICS)
        self._start = last_step(workdir)
        self._read: tuple[int, int] | None = None  # size and time of the rows that `pace` is of
        self.replan: Pace | None = None
        """The pace by which to plan anew; None: the run goes to its end."""
        self.pace: Pace | None = None
        """The pace as it was seen last."""

    def look(self) -> bool:
        """Returns whether the run has to end here."""
        path = self._workdir / METRICS
        if math.isnan(self._begin):
            if _file_number(path) == self._file:  # the run writes it anew where it begins to train
                return False
            self._begin = self._clock.spent
        now = path.stat()
        if self._read != (seen := (now.st_size, now.st_mtime_ns)):
            prepared = self._begin - self._called
            self.pace = read_pace(path, self._costs, start=self._start, prepared=prepared)
            self._read = seen
        pace = self.pace
        if pace is None or pace.step >= self._total:
            return False
        end = self._begin + pace.seconds + pace.seconds_to(self._total, self._every)
        seconds, part = self._clock.seconds, self._clock.spent / self._clock.seconds
        late = (end - seconds) / seconds
        again = pace.costs.start + pace.costs.evaluation
        if self._judged is not None:
            first, last, lengthens = self._judged
            misses = late > _LATE or (lengthens and late < -_EARLY - again / seconds)
            if misses and first < part < last and self._clock.left > _WORTH * again:
                self.replan = pace
                return True
        compiling = 0.0 if pace.tested else _EVALUATION_COMPILES * pace.costs.start
        return late > _LATE and self._clock.left < pace.costs.evaluation + compiling

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at a run while the block trains it."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(_LOOK):
                with contextlib.suppress(OSError, UserError):  # of a file that is being replaced
                    if self.look():
                        (self._workdir / STOP).touch()
                        return

        thread = threading.Thread(target=look, name="minutes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def resumed(task: Task, workdir: Path, clock: Clock) -> Choice:
    """Returns the choice of a run that was stopped, or whose time is extended.

    `clock` counts the time that it has trained already. Its length stays where that fits.
    """
    config = task.make({})
    train, _ = open_data(dict(config.data), seed=config.seed)
    batch, images = config.data.batch_size, len(train)
    text = ast.get_docstring(ast.parse((workdir / RECIPE).read_text(encoding="utf-8"))) or ""
    pace = read_pace(workdir / METRICS, _UNKNOWN, start=0, prepared=_UNKNOWN.start)
    choice = Choice({}, config, _UNKNOWN, images, text.splitlines())
    if pace is None:
        return choice
    done, costs = last_step(workdir), pace.costs
    planned = _plan(config, images).total_steps
    more = costs.steps_in(clock.left, 1)
    if abs(done + more - planned) <= _KEPT * planned or more <= 0:
        return replace(choice, costs=costs)
    evaluations = max(1, min(evaluations_in(clock.left, costs), more))
    keys = length(done + more, evaluations, images=images, batch=batch, done=done)
    log.info(
        "minutes: %d more steps fit into the time; the plan had %d left.", more, planned - done
    )
    return replace(choice, keys=keys, config=task.make(keys), costs=costs)


def train_within(
    task: Task, choice: Choice, workdir: Path, clock: Clock, *, command: str, **options: Any
) -> Outcome:
    """Trains by a choice in `workdir` until the time is over; writes the recipe that repeats it.

    `options` are those of `train_and_evaluate`. Where the run turns out faster or slower than the
    trial, it ends at a checkpoint, twice at most, and resumes with as many steps as fit.
    """
    keys, costs, config = dict(choice.keys), choice.costs, choice.config
    for judged in _ROUNDS:
        write_recipe(workdir / RECIPE, config, choice.reasons)
        batch, images = config.data.batch_size, choice.images
        plan = _plan(config, images)
        total, every = plan.total_steps, plan.eval_every
        watch = Watch(workdir, clock, costs, total=total, every=every, judged=judged)
        with watch.watching():
            outcome = train_and_evaluate(config, workdir, command=command, **options)
        (workdir / STOP).unlink(missing_ok=True)  # of a run that ended before it was asked to
        done = last_step(workdir)
        pace = watch.replan
        if pace is None and done >= total:  # the run is whole, and may have time left
            pace = watch.pace
            if pace is None or clock.left < _UNUSED * clock.seconds + pace.costs.start:
                break
        if pace is None or judged is None:
            break
        costs = pace.costs
        evaluations = max(1, evaluations_in(clock.seconds, costs) // 2)
        more = costs.steps_in(clock.left, evaluations)
        log.info(
            "minutes: a step takes %.3g s and an evaluation %.2g s, so %d more steps fit into "
            "the time; the plan had %d left.",
            costs.step,
            costs.evaluation,
            more,
            total - done,
        )
        if more <= evaluations:
            break
        keys |= length(done + more, evaluations, images=images, batch=batch, done=done)
        config = task.make(keys)
    return outcome


def _plan(config: ConfigDict, images: int) -> Plan:
    optim, run = config.optim.to_dict(), config.run.to_dict()
    return make_plan(optim, run, num_examples=images, batch_size=config.data.batch_size)


def last_step(workdir: Path) -> int:
    """Returns the last step of a run's rows; 0 where there are none."""
    lines = read_rows(workdir / METRICS).lines
    return max((row[STEP] for _, row in lines), default=0)


def _file_number(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0

"""The run, from its config to its results."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vitswin_jax.core.goodput import RESTORE, START
from vitswin_jax.core.memory import in_one_line_without_memory
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Params
from vitswin_jax.core.version import __version__
from vitswin_jax.data.fingerprint import fingerprint
from vitswin_jax.evaluate.step import features_step
from vitswin_jax.report.runs import check_comparable
from vitswin_jax.results import Outcome, Results, scoring
from vitswin_jax.train.hosts.join import check_same, raising_together
from vitswin_jax.train.hosts.signals import stop_in_the_loop, stopping
from vitswin_jax.train.keep.callbacks import Callbacks
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.claim import check_name, claimed
from vitswin_jax.train.keep.journal import Journal
from vitswin_jax.train.keep.local import LocalSets, identity
from vitswin_jax.train.keep.metrics import Recorder
from vitswin_jax.train.keep.request import Requests
from vitswin_jax.train.keep.services import Logged, check_loggers, make_loggers
from vitswin_jax.train.keep.timing import profiled
from vitswin_jax.train.keep.workdir import PROFILE, check_shared, flatten
from vitswin_jax.train.keep.working import working_in
from vitswin_jax.train.run.announce import (
    SCHEDULE,
    announce,
    announce_schedule,
    facts_of_start,
)
from vitswin_jax.train.run.compile import Evaluator, make_evaluation, make_steps
from vitswin_jax.train.run.dtype import with_dtype
from vitswin_jax.train.run.own import NONE, Own
from vitswin_jax.train.run.prepare import Run, prepare
from vitswin_jax.train.run.provenance import facts_of
from vitswin_jax.train.run.start import save_start
from vitswin_jax.train.state import (
    TrainState,
    create_state,
    describe_trained,
    place_constants,
    state_layout,
)
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.weights.runs import CHECKPOINTS

log = logger(__name__)


WITHOUT_MEMORY = (
    "a smaller data.batch_size, a larger optim.accum_steps, model.remat=full, or more "
    "devices with mesh.fsdp need less memory; `vitswin plan` says how much a config needs."
)


@in_one_line_without_memory(WITHOUT_MEMORY)
def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    command: str | None = None,
    profile: tuple[int, int] | None = None,
    accept_changed_data: bool = False,
    own: Own = NONE,
    began: float | None = None,
) -> Outcome:
    """Trains by `config` (configs/base.py has all keys) in `workdir`; resumes an interrupted run.

    At each evaluation and at the end it writes the weights, model.safetensors, the best so far,
    best.safetensors, and report.html, which shows the `command` that was typed. `profile` gives the
    first and the last step to trace, counted from here. Data that changed since the last checkpoint
    raise, unless `accept_changed_data`. `own` has a Python user's objects (`fitting.fit`). The
    goodput counts from `began`, on `time.monotonic`, or from this call. Raises
    UserError for mistakes of the user, before it writes anything if it can, and StoppedError after
    Ctrl-C, SIGTERM or SIGHUP, once everything is saved.
    Each of several hosts (`joined`) calls this with the same config and workdir, and the first host
    writes. A workdir is one run's at a time. For one in an object store, such as
    gs://bucket/runs/x, all hosts must see the folder of the cache (`train.keep.working`).
    """
    began = time.monotonic() if began is None else began
    with (
        working_in(workdir) as folder,
        begun(config, folder, accept_changed_data=accept_changed_data, own=own) as begin,
    ):
        journal = Journal(begin.workdir, began=began)
        with journal.written():
            return train(begin, journal, command=command, profile=profile)


def train(
    begin: Begun, journal: Journal, *, command: str | None, profile: tuple[int, int] | None
) -> Outcome:
    """Trains a run that has begun, from its newest checkpoint on, and tests it."""
    config, run, layout, workdir, _ = begin
    log.info("%s.", describe_trained(layout, lora=run.options.lora, groups=run.options.groups))
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    compiled, evaluator, constants = compile_run(run, layout)
    callbacks = Callbacks(run.own.callbacks)
    requests = Requests(workdir, callbacks)
    local = local_sets(begin)
    with (
        stopping(requests) as stop,
        checkpoints_of(begin, local, command) as checkpoints,
        profiled(compiled, profile, workdir / PROFILE) as train_step,
    ):
        journal.laps.lap(START)
        state, step = checkpoints.restore_or(lambda: create(run, init_key), layout)
        journal.laps.lap(RESTORE)
        facts = facts_of_start(run, step=step)
        announce(facts)
        announce_schedule(config, run, checkpoints.restored.get(SCHEDULE), step=step)
        recorder = recorder_of(begin, step, checkpoints, callbacks=callbacks, journal=journal)
        results = Results(
            config,
            run,
            workdir,
            evaluator=evaluator,
            checkpoints=checkpoints,
            recorder=recorder,
            facts=facts,
            command=command,
        )
        with (
            contextlib.closing(recorder),
            contextlib.closing(run.make_train_batches(step, run.plan.total_steps)) as batches,
        ):
            journal.begin(step, local=checkpoints.restored_locally)
            ended = results.resume(state, step)
            for batch in () if ended else recorder.inputs(batches):
                state, metrics = train_step(state, batch, step_key, *constants)
                step += 1
                recorder.record(step, metrics)
                if results.after(state, step, stop):
                    break
        requests.forget()
        if run.plan.final == "best":
            state = checkpoints.restore_best(layout)
    recorder.written()
    outcome = results.finish(state)
    if local is not None:
        local.remove()
    return outcome


class Begun(NamedTuple):
    """A run that is prepared, and whose folder is claimed."""

    config: ConfigDict
    """As it was given: "auto" is not yet the device's dtype in it."""
    run: Run
    layout: TrainState
    workdir: Path
    data: Mapping[str, Any]
    """The fingerprint of the data."""


@contextlib.contextmanager
def begun(
    config: ConfigDict, workdir: str | os.PathLike[str], *, accept_changed_data: bool, own: Own
) -> Iterator[Begun]:
    """Prepares the run, lays out its state and claims its folder, or raises: all hosts alike.

    The folder is this run's until the end.
    """
    versions = {"vitswin_jax": __version__, "jax": jax.__version__}
    check_same(flatten(config.to_dict()) | {"--workdir": str(workdir)} | versions)
    with raising_together():
        path = check_name(workdir)
        if config.compare_to is not None:
            check_comparable(config.to_dict(), config.compare_to)
        if jax.process_index() == 0:
            check_loggers(config.loggers)
        typed = with_dtype(config, jax.devices()[0], path)
        run = prepare(typed, path, own=own)
        layout = state_layout(run.model, run.tx, **run.state)
        data = fingerprint(run.train, run.test)
    check_same(run.facts)
    check_same(
        {
            f"{column} of data.{split}_split": digest
            for split in ("train", "test")
            for column, digest in data[split]["digests"].items()
        }
    )
    stop_in_the_loop()
    with contextlib.ExitStack() as claim:
        with raising_together():
            claims = claimed(
                path,
                typed.to_dict(),
                data,
                accept_changed_data=accept_changed_data,
                labelled=isinstance(run.options.task, Supervised),
                total_steps=run.plan.total_steps,
            )
            path = claim.enter_context(claims)
            save_start(path, run.start)
        with raising_together():
            check_shared(path)
        yield Begun(config, run, layout, path, data)


def compile_run(
    run: Run, layout: TrainState
) -> tuple[Callable[..., Any], Evaluator, tuple[Params, ...]]:
    """Returns the train step, the evaluator, and what the step takes besides: a teacher, if any."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    teacher = load_teacher(run)
    compiled = make_steps(run, shardings, jax.tree.map(lambda leaf: leaf.sharding, teacher))
    evaluator = make_evaluation(
        run, shardings, features=features_step, **scoring(run.options.task, teacher)
    )
    return compiled, evaluator, () if teacher is None else (teacher,)


def checkpoints_of(begin: Begun, local: LocalSets | None, command: str | None) -> Checkpoints:
    """Returns the run's checkpoints, as its plan keeps them."""
    plan = begin.run.plan
    return Checkpoints(
        begin.workdir / CHECKPOINTS,
        newest=plan.keep_checkpoints,
        best=plan.keep_best,
        every=plan.keep_every,
        data=begin.data,
        facts=facts_of(begin.config, begin.run, command),
        local=local,
    )


def recorder_of(
    begin: Begun, step: int, checkpoints: Checkpoints, *, callbacks: Callbacks, journal: Journal
) -> Recorder:
    """Returns the recorder of the run's metrics after `step`, with the config's and own loggers."""
    config, run, _, workdir, _ = begin
    logged = Logged(workdir, step, flatten(config.to_dict()), config.project)
    return Recorder(
        workdir,
        run.plan,
        run.schedule,
        start_step=step,
        tested=bool(checkpoints.restored["metrics"]),
        window=checkpoints.restored["window"],
        more_loggers=functools.partial(make_loggers, config.loggers, logged, run.own.loggers),
        callbacks=callbacks,
        journal=journal,
    )


def local_sets(begin: Begun) -> LocalSets | None:
    """Returns the run's sets on this host's own disk; None where the config names no folder."""
    plan = begin.run.plan
    if not plan.local_dir:
        return None
    return LocalSets(
        plan.local_dir,
        begin.workdir,
        owner=identity(begin.workdir, begin.config.to_dict()),
        data=begin.data,
        seconds=plan.local_seconds,
        copies=plan.local_copies,
        total_steps=plan.total_steps,
    )


def create(run: Run, key: jax.Array) -> TrainState:
    """Creates the state before the first step, of loaded weights or by chance."""
    loaded = run.start.load(head_bias=run.head_bias, mesh=run.mesh)
    state, _ = create_state(
        run.model, run.tx, key, head_bias=run.head_bias, loaded=loaded, **run.state
    )
    return state


def load_teacher(run: Run) -> Params | None:
    """Returns the parameters of the run's teacher on its mesh, None where it has no teacher."""
    params = None if run.teacher is None else run.teacher.load(head_bias=0.0, mesh=run.mesh)
    return None if params is None else place_constants(params, run.mesh)

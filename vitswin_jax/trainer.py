"""The run: training, its evaluation and its page meet here, and nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vitswin_jax.core.memory import in_one_line_without_memory
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Batch, Params
from vitswin_jax.core.version import __version__
from vitswin_jax.data.fingerprint import fingerprint
from vitswin_jax.data.pipeline import EvalBatches
from vitswin_jax.evaluate.evaluation import collect, summarize
from vitswin_jax.evaluate.probes import Features, probe
from vitswin_jax.evaluate.reconstruction import reconstruction_step
from vitswin_jax.evaluate.step import Metrics, eval_step, features_step, mean_scores
from vitswin_jax.report.pages import write_report
from vitswin_jax.report.reconstruction import write_pretraining_report
from vitswin_jax.report.results import PretrainingResult, Result
from vitswin_jax.report.runs import check_comparable
from vitswin_jax.train.hosts.join import check_same, raising_together
from vitswin_jax.train.hosts.signals import InterruptedEvaluation, stop_in_the_loop, stopping
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.claim import check_name, claimed
from vitswin_jax.train.keep.metrics import Recorder
from vitswin_jax.train.keep.timing import profiled
from vitswin_jax.train.keep.workdir import (
    CHECKPOINTS,
    PROFILE,
    REPORT,
    check_shared,
    flatten,
)
from vitswin_jax.train.run.compile import Evaluator, make_evaluation, make_step
from vitswin_jax.train.run.prepare import Run, prepare
from vitswin_jax.train.run.start import save_start
from vitswin_jax.train.state import (
    TrainState,
    create_state,
    describe_trained,
    place_constants,
    state_layout,
)
from vitswin_jax.train.task.masked import Masked
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.weights.locate import WEIGHTS
from vitswin_jax.weights.save import save_pretrained

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
) -> Result | PretrainingResult:
    """Trains by `config` (configs/base.py has all keys) in `workdir`; resumes an interrupted run.

    At the end it writes the final weights, model.safetensors, and report.html, which shows the
    `command` that was typed. `profile` gives the first and the last step to trace, counted from
    here. Data that changed since the last checkpoint raise, unless `accept_changed_data`. Raises
    UserError for mistakes of the user, before it writes anything if it can, and StoppedError after
    Ctrl-C, SIGTERM or SIGHUP, once everything is saved. Each of several hosts (`joined`) calls this
    with the same config and workdir, and the first host writes. A workdir is one run's at a time.
    """
    with begun(config, workdir, accept_changed_data=accept_changed_data) as begin:
        return train(config, *begin, command=command, profile=profile)


def train(
    config: ConfigDict,
    run: Run,
    layout: TrainState,
    workdir: Path,
    data: Mapping[str, Any],
    *,
    command: str | None,
    profile: tuple[int, int] | None,
) -> Result | PretrainingResult:
    """Trains a run that has begun, from its newest checkpoint on, and tests it."""
    plan = run.plan
    options = run.options
    log.info("%s.", describe_trained(layout, lora=options.lora, groups=options.groups))
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    teacher = load_teacher(run)
    compiled = make_step(run, shardings, jax.tree.map(lambda leaf: leaf.sharding, teacher))
    constants = () if teacher is None else (teacher,)
    scores = PAIRS[type(options.task)].scores
    weights, evaluator = make_evaluation(run, shardings, scores=scores, features=features_step)
    with (
        stopping() as stop,
        Checkpoints(
            workdir / CHECKPOINTS,
            newest=plan.keep_checkpoints,
            best=plan.keep_best,
            every=plan.keep_every,
            data=data,
        ) as checkpoints,
        profiled(compiled, profile, workdir / PROFILE) as train_step,
    ):
        state, step = checkpoints.restore_or(lambda: create(run, init_key), layout)
        recorder = Recorder(
            workdir, plan, run.schedule, start_step=step, window=checkpoints.restored["window"]
        )
        keeper = Keeper(run, weights, evaluator, checkpoints, recorder)
        with (
            contextlib.closing(recorder),
            contextlib.closing(run.make_train_batches(step, plan.total_steps)) as batches,
        ):
            if step and plan.evaluates_at(step) and not checkpoints.restored["metrics"]:
                keeper.save(state, step, keeper.test(state, step), again=True)  # a stop came first
            for batch in recorder.inputs(batches):
                state, metrics = train_step(state, batch, step_key, *constants)
                step += 1
                recorder.record(step, metrics)
                tested = {}
                if plan.evaluates_at(step) and not stop():
                    tested = keeper.test(state, step, each=stop.before_each)
                if plan.saves_at(step) or stop():
                    keeper.save(state, step, tested)
                if stop():
                    raise stop.error(step, plan.total_steps)
        if plan.final == "best":
            state = checkpoints.restore_best(layout)
    step = int(state.step)
    return finish(config, run, workdir, weights(state), evaluator, step=step, command=command)


@contextlib.contextmanager
def begun(
    config: ConfigDict, workdir: str | os.PathLike[str], *, accept_changed_data: bool
) -> Iterator[tuple[Run, TrainState, Path, Mapping[str, Any]]]:
    """Prepares the run, lays out its state and claims its folder, or raises: all hosts alike.

    Gives these and the fingerprint of the data; the folder is this run's until the end.
    """
    versions = {"vitswin_jax": __version__, "jax": jax.__version__}
    check_same(flatten(config.to_dict()) | {"--workdir": str(workdir)} | versions)
    with raising_together():
        path = check_name(workdir)
        if config.compare_to is not None:
            check_comparable(config.to_dict(), config.compare_to)
        run = prepare(config, path)
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
                config.to_dict(),
                data,
                accept_changed_data=accept_changed_data,
                labelled=isinstance(run.options.task, Supervised),
            )
            path = claim.enter_context(claims)
            save_start(path, run.start)
        with raising_together():
            check_shared(path)
        yield run, layout, path, data


def create(run: Run, key: jax.Array) -> TrainState:
    """Creates the state before the first step, of loaded weights or by chance."""
    loaded = run.start.load(head_bias=run.head_bias)
    state, _ = create_state(
        run.model, run.tx, key, head_bias=run.head_bias, loaded=loaded, **run.state
    )
    return state


def load_teacher(run: Run) -> Params | None:
    """Returns the parameters of the run's teacher on its mesh, None where it has no teacher."""
    params = None if run.teacher is None else run.teacher.load(head_bias=0.0)
    return None if params is None else place_constants(params, run.mesh)


@dataclass(frozen=True)
class Keeper:
    """What is measured of a run's states on its way, and saved."""

    run: Run
    weights: Callable[[TrainState], Params]
    evaluator: Evaluator
    checkpoints: Checkpoints
    recorder: Recorder

    def test(
        self, state: TrainState, step: int, *, each: Callable[[EvalBatches], Iterable[Batch]] = iter
    ) -> dict[str, float]:
        """Evaluates a state and writes the row; returns {} where a stop has ended it, by `each`."""
        params = self.weights(state)
        try:
            tested = evaluate(self.run, self.evaluator, params, step=step, each=each)
        except InterruptedEvaluation:
            return {}
        self.recorder.write(step, tested)
        return tested

    def save(
        self, state: TrainState, step: int, tested: Mapping[str, float], *, again: bool = False
    ) -> None:
        """Starts to save a state with what it was tested with, in place of its own if `again`."""
        window = self.recorder.settle()  # raises rather than that broken numbers are saved
        self.checkpoints.save(state, next_batch=step, metrics=tested, window=window, again=again)


def evaluate(
    run: Run,
    evaluator: Evaluator,
    params: Params,
    *,
    step: int,
    each: Callable[[EvalBatches], Iterable[Batch]] = iter,
) -> dict[str, float]:
    """Returns mean scores of all test examples and, when they are due, the probes' accuracies.

    `each` gives the batches, or raises if it is given up.
    """
    numbers = mean_scores(evaluator.scores(params, batch) for batch in each(run.test_batches))
    if run.probes is not None and run.probes.due_at(step, run.plan):
        train, test = (
            Features(*collect(evaluator.features(params, batch) for batch in each(batches)))
            for batches in (run.probes.batches, run.test_batches)
        )
        numbers |= probe(train, test, num_classes=run.probes.num_classes)
    return numbers


@dataclass(frozen=True)
class Tested:
    """The final test of a run."""

    metadata: dict[str, Any]
    """Of the weights file, besides what all runs give it."""
    page: dict[str, Any]
    """Arguments of the page, besides those of all pages."""
    result: Callable[[Path, Path], Result | PretrainingResult]
    """Makes the outcome, given the weights and the report."""


def score_classes(
    config: ConfigDict, run: Run, evaluator: Evaluator, params: Params, *, step: int
) -> Tested:
    """Tests a classifier: every prediction is kept for the page."""
    logits, labels = collect(evaluator.scores(params, batch) for batch in run.test_batches)
    with raising_together():
        evaluation = summarize(logits, labels, run.test.class_names)
    numbers = {"test/accuracy": evaluation.top1, "test/loss": evaluation.loss}
    return Tested(
        {"class_names": run.train.class_names, "metrics": numbers},
        {"evaluation": evaluation, "compare_to": config.compare_to},
        functools.partial(Result, config.model.name, evaluation.top1, len(labels)),
    )


def score_reconstruction(
    config: ConfigDict, run: Run, evaluator: Evaluator, params: Params, *, step: int
) -> Tested:
    """Tests a model without labels by its loss and the probes."""
    numbers = evaluate(run, evaluator, params, step=step)
    named = (config.model.name, config.pretrain.method, numbers["test/loss"], len(run.test))
    return Tested(
        {"metrics": numbers},
        {"numbers": numbers, "batches": run.test_batches},
        functools.partial(PretrainingResult, *named),
    )


@dataclass(frozen=True)
class Pair:
    """The evaluation and the page of one kind of training."""

    scores: Callable[..., Metrics]
    test: Callable[..., Tested]
    write_page: Callable[..., Path]


PAIRS = {
    Supervised: Pair(eval_step, score_classes, write_report),
    Masked: Pair(reconstruction_step, score_reconstruction, write_pretraining_report),
}


def finish(
    config: ConfigDict,
    run: Run,
    workdir: Path,
    params: Params,
    evaluator: Evaluator,
    *,
    step: int,
    command: str | None,
) -> Result | PretrainingResult:
    """Tests a step's parameters on the whole split; the first host writes weights and report."""
    pair = PAIRS[type(run.options.task)]
    tested = pair.test(config, run, evaluator, params, step=step)
    origin = None if run.start.origin is None else dataclasses.asdict(run.start.origin)
    data = ("dataset", "data_dir", "train_split", "test_split", "holdout")
    provenance = {key: config.data[key] for key in data} | {
        "multi_label": run.train.multi_label,
        "init_from": origin,
        "seed": config.seed,
        "step": step,
        "command": command,
        "version": __version__,
    }
    metadata = {"name": config.model.name, "preprocess": run.preprocess, "provenance": provenance}
    metadata |= tested.metadata
    params = multihost_utils.process_allgather(params, tiled=True)  # whole, in the host's memory
    with raising_together():
        if jax.process_index() == 0:
            save_pretrained(workdir / WEIGHTS, run.model, {"params": params}, metadata=metadata)
            pair.write_page(
                workdir / REPORT,
                title=f"{config.model.name} on {config.data.dataset}",
                model=run.model,
                params=params,
                source=run.test,
                preprocess=run.preprocess,
                workdir=workdir,
                command=command,
                origin=origin,
                **tested.page,
            )
    return tested.result(workdir / WEIGHTS, workdir / REPORT)

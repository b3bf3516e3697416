"""Results of a run's states, measured, kept and written: train, evaluate and report meet here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Batch, Params, UserError
from vitswin_jax.data.pipeline import EvalBatches
from vitswin_jax.evaluate.agreement import agreement_step
from vitswin_jax.evaluate.evaluation import collect, summarize
from vitswin_jax.evaluate.probes import Features, probe
from vitswin_jax.evaluate.reconstruction import reconstruction_step
from vitswin_jax.evaluate.step import Metrics, eval_step, mean_scores
from vitswin_jax.explain.emergence import write_attention_report
from vitswin_jax.models.pretraining import describe_method
from vitswin_jax.models.unlabelled import UnlabelledModel
from vitswin_jax.nn.params import PROJECTIONS
from vitswin_jax.report.pages import write_report
from vitswin_jax.report.reconstruction import write_pretraining_report
from vitswin_jax.report.results import PretrainingResult, Result
from vitswin_jax.train.hosts.join import raising_together
from vitswin_jax.train.hosts.signals import InterruptedEvaluation, Stop
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.metrics import Recorder
from vitswin_jax.train.keep.workdir import REPORT
from vitswin_jax.train.run.announce import changed_keys
from vitswin_jax.train.run.compile import Evaluator
from vitswin_jax.train.run.distil import METHOD
from vitswin_jax.train.run.prepare import Run
from vitswin_jax.train.run.provenance import metadata_of
from vitswin_jax.train.state import TrainState
from vitswin_jax.train.task.features import FeaturesOnly, LabelsAndFeatures
from vitswin_jax.train.task.masked import Masked
from vitswin_jax.train.task.self_distilled import SelfDistilled
from vitswin_jax.train.task.supervised import Supervised
from vitswin_jax.train.task.task import Task
from vitswin_jax.weights.runs import BEST, WEIGHTS
from vitswin_jax.weights.save import save_pretrained

log = logger(__name__)

Each = Callable[[EvalBatches], Iterable[Batch]]
Outcome = Result | PretrainingResult


class Tested(NamedTuple):
    """The results of a test of a state."""

    step: int
    numbers: Mapping[str, float]
    """By the names of metrics.jsonl."""
    page: Mapping[str, Any]
    """Arguments of the page, besides those of all pages."""
    result: Callable[[Path, Path], Outcome]
    """Makes the outcome, given the weights and the report."""


def score_classes(
    config: ConfigDict, run: Run, outputs: Iterable[Metrics], *, step: int, probed: Callable
) -> Tested:
    """Tests a classifier: every prediction is kept for the page."""
    del probed
    logits, labels = collect(outputs)
    with raising_together():
        evaluation = summarize(logits, labels, run.test.class_names)
    return Tested(
        step,
        {"test/loss": evaluation.loss, "test/accuracy": evaluation.top1}
        | run.own.scores(logits, labels),
        {"evaluation": evaluation, "compare_to": config.compare_to},
        functools.partial(Result, config.model.name, evaluation.top1, len(labels)),
    )


def score_unlabelled(
    config: ConfigDict, run: Run, outputs: Iterable[Metrics], *, step: int, probed: Callable
) -> Tested:
    """Tests a model without labels by its loss and the probes."""
    numbers = mean_scores(outputs) | probed()
    assert run.unlabelled is not None  # as the task says
    method = describe_run(config, run)
    named = (config.model.name, run.unlabelled.method, numbers["test/loss"], len(run.test))
    return Tested(
        step,
        numbers,
        {"numbers": numbers, "batches": run.test_batches, "step": step, "method": method},
        functools.partial(PretrainingResult, *named),
    )


def describe_run(config: ConfigDict, run: Run) -> dict[str, Any]:
    """Returns the method of a run without labels and its settings, as plain data."""
    if isinstance(run.model, UnlabelledModel):
        return describe_method(run.model)
    keys = ("teacher", "features", "loss", "beta")
    return {"method": METHOD} | {key: config.distill[key] for key in keys}


@dataclass(frozen=True)
class Pair:
    """The evaluation and the page of one kind of training."""

    scores: Callable[..., Metrics] | None
    """None: the task's own, which reads the teacher."""
    test: Callable[..., Tested]
    write_page: Callable[..., Path]


PAIRS = {
    Supervised: Pair(eval_step, score_classes, write_report),
    Masked: Pair(reconstruction_step, score_unlabelled, write_pretraining_report),
    SelfDistilled: Pair(agreement_step, score_unlabelled, write_attention_report),
    LabelsAndFeatures: Pair(eval_step, score_classes, write_report),
    FeaturesOnly: Pair(None, score_unlabelled, write_attention_report),
}


def scoring(task: Task, teacher: Params | None) -> dict[str, Any]:
    """Returns the evaluation step of a task, `scores`, and the `teacher` if the step reads it."""
    if isinstance(task, FeaturesOnly):
        return {"scores": task.score, "teacher": teacher}
    return {"scores": PAIRS[type(task)].scores}


class Results:
    """Measurements of a run's states, on the way and at the end, and the files written of them.

    Each evaluation writes a row, `model.safetensors`, `best.safetensors` where none was better, and
    `report.html`, so that an unfinished run can be used.
    """

    def __init__(
        self,
        config: ConfigDict,
        run: Run,
        workdir: Path,
        *,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        recorder: Recorder,
        facts: Sequence[tuple[str, str]],
        command: str | None,
    ) -> None:
        """`facts` are what the run says at its start, for the page."""
        self._config, self._run, self._workdir = config, run, workdir
        self._evaluator, self._checkpoints, self._recorder = evaluator, checkpoints, recorder
        self._facts = [*facts, ("changed keys", changed_keys(config))]
        self._command = command
        self._pair = PAIRS[type(run.options.task)]
        self._best = checkpoints.best
        self._tested: Tested | None = None
        self._written = False

    def resume(self, state: TrainState, step: int) -> bool:
        """Makes up for the evaluation that a stop cut off; returns whether the run has ended early.

        `state` was restored, or is that before the first step.
        """
        if step and self._run.plan.evaluates_at(step) and not self._checkpoints.restored["metrics"]:
            self._tested = self.test(state, step)
            self._save(state, step, again=True)
        return self._exhausted(step)

    def after(self, state: TrainState, step: int, stop: Stop) -> bool:
        """Evaluates and saves where that is due; returns whether the run ends here, early.

        Raises StoppedError where a signal stops it, once all is saved.
        """
        plan, stops = self._run.plan, stop()
        self._tested = None
        if (plan.evaluates_at(step) and not stops) or stop.on_request:
            self._tested = self.test(state, step, each=stop.before_each)
        ends = stop.on_request or self._exhausted(step)
        local = self._checkpoints.local
        due = local is not None and local.due(step)
        if plan.saves_at(step) or stop.stops or ends:
            self._save(state, step)
        elif due:
            self._save(state, step, local=True)
        if stop.stops and not ends:
            raise stop.error(step, plan.total_steps)
        if stop.on_request:
            log.info(
                "steps: ends after %d of %d, as requested; repeat the command to resume.",
                step,
                plan.total_steps,
            )
        return ends

    def finish(self, state: TrainState) -> Outcome:
        """Returns the outcome of the state that the run ends with; tests it if nothing has."""
        step = int(state.step)
        if self._tested is None or self._tested.step != step or not self._written:
            params = self._evaluator.weights(state)
            self._tested = self._score(params, step, iter)
            self._recorder.evaluated()
            self._write(params, self._tested)
        return self._tested.result(self._workdir / WEIGHTS, self._workdir / REPORT)

    def test(self, state: TrainState, step: int, *, each: Each = iter) -> Tested | None:
        """Evaluates a state and writes all of it; returns None where a stop, by `each`, cut it off.

        Raises UserError where a number of the steps before is not finite.
        """
        self._recorder.settle()
        params = self._evaluator.weights(state)
        try:
            tested = self._score(params, step, each)
        except InterruptedEvaluation:
            return None
        self._recorder.write(step, tested.numbers)
        self._best = self._best.after(step, tested.numbers)
        try:
            self._write(params, tested)
            self._written = True
        except UserError as error:  # only a checkpoint that cannot be written ends a run
            self._written = False
            log.warning("step %d of %d: %s", step, self._run.plan.total_steps, error)
        self._recorder.written()
        return tested

    def _score(self, params: Params, step: int, each: Each) -> Tested:
        run, evaluator = self._run, self._evaluator
        outputs = (evaluator.scores(params, batch) for batch in each(run.test_batches))
        probed = functools.partial(self._probe, params, step, each)
        return self._pair.test(self._config, run, outputs, step=step, probed=probed)

    def _probe(self, params: Params, step: int, each: Each) -> dict[str, float]:
        """Returns the probes' accuracies, none where they are not due."""
        probes = self._run.probes
        if probes is None or not probes.due_at(step, self._run.plan):
            return {}
        train, test = (
            Features(*collect(self._evaluator.features(params, batch) for batch in each(batches)))
            for batches in (probes.batches, self._run.test_batches)
        )
        return probe(train, test, num_classes=probes.num_classes)

    def _exhausted(self, step: int) -> bool:
        """Returns whether the run ends for want of a better evaluation, and says so."""
        plan, best = self._run.plan, self._best
        if not plan.patience or best.since < plan.patience or step >= plan.total_steps:
            return False
        log.info(
            "steps: ends early, after %d of %d: the %d evaluations since step %d were no better "
            "(run.patience).",
            step,
            plan.total_steps,
            best.since,
            best.step,
        )
        return True

    def _save(
        self, state: TrainState, step: int, *, again: bool = False, local: bool = False
    ) -> None:
        """Starts to save a state with what it was tested with, in place of its own if `again`.

        A `local` set is only on each host's own disk.
        """
        window = self._recorder.settle()  # raises rather than that broken numbers are saved
        self._checkpoints.save(
            state,
            next_batch=step,
            metrics=None if self._tested is None else self._tested.numbers,
            window=window,
            best=self._best,
            again=again,
            local=local,
        )
        if local:
            self._recorder.saved_locally()

    def _write(self, params: Params, tested: Tested) -> None:
        """Writes weights and report; the first host does, and all raise where it cannot."""
        run, workdir = self._run, self._workdir
        own = {root: tree for root, tree in params.items() if root != PROJECTIONS}
        params = multihost_utils.process_allgather(own, tiled=True)  # whole, on the host
        with raising_together():
            if jax.process_index() != 0:
                return
            metadata = metadata_of(self._config, run, self._command)
            metadata["provenance"]["step"] = tested.step
            metadata["metrics"] = dict(tested.numbers)
            files = (WEIGHTS, BEST) if self._best.step == tested.step else (WEIGHTS,)
            for file in files:
                save_pretrained(workdir / file, run.model, {"params": params}, metadata=metadata)
            self._pair.write_page(
                workdir / REPORT,
                title=f"{self._config.model.name} on {self._config.data.dataset}",
                model=run.model,
                params=params,
                source=run.test,
                preprocess=run.preprocess,
                workdir=workdir,
                command=self._command,
                origin=metadata["provenance"]["init_from"],
                facts=self._facts,
                **tested.page,
            )

"""The run: the one place where models, data, steps, checkpoints and metrics meet."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vitswin_jax import pretraining
from vitswin_jax.core.types import Batch, Params
from vitswin_jax.core.version import __version__
from vitswin_jax.evaluate.evaluation import Evaluation, collect, summarize
from vitswin_jax.evaluate.step import Metrics, eval_step
from vitswin_jax.nn.batch import Triple
from vitswin_jax.report.pages import write_report
from vitswin_jax.report.runs import check_comparable
from vitswin_jax.train.hosts.join import check_same, raising_together
from vitswin_jax.train.hosts.signals import StoppedError, stop_on_sigterm
from vitswin_jax.train.keep.checkpoint import Checkpoints
from vitswin_jax.train.keep.metrics import Recorder
from vitswin_jax.train.keep.timing import profiled
from vitswin_jax.train.keep.workdir import (
    CHECKPOINTS,
    PROFILE,
    REPORT,
    check_shared,
    claim_workdir,
    flatten,
)
from vitswin_jax.train.run.prepare import Run, make_step, prepare
from vitswin_jax.train.run.start import save_start
from vitswin_jax.train.sharding import shard_batch
from vitswin_jax.train.state import (
    TrainState,
    create_state,
    describe_trained,
    make_weights,
    place_constants,
    state_layout,
)
from vitswin_jax.train.step import compile_for_hosts
from vitswin_jax.weights.pretrained import WEIGHTS, save_pretrained

log = logging.getLogger(__name__)

Predict = Callable[[Params, Batch], dict[str, jax.Array]] | pretraining.Predict


@dataclass(frozen=True)
class Result:
    """What a finished run says of itself."""

    name: str
    test_accuracy: float  # fraction in [0, 1]
    test_images: int
    weights: Path
    report: Path

    def __str__(self) -> str:
        accuracy = f"{self.name}  test accuracy {100 * self.test_accuracy:.1f} %"
        return f"{accuracy} ({self.test_images} images)  report: {self.report}"


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    command: str | None = None,
    profile: tuple[int, int] | None = None,
) -> Result | pretraining.PretrainingResult:
    """Trains as `config` says (configs/base.py has all keys), in `workdir`, from where it was left.

    Ends with the final weights, model.safetensors, and report.html, which shows the `command` that
    was typed. The steps from one of `profile` to the other, from here on, are traced. Raises
    UserError for what the user can mend, before anything is written where that can be known, and
    StoppedError after a SIGTERM, when all is saved. Of several hosts (`joined`), each gives the
    same config and workdir, and the first writes.
    """
    run, layout, workdir = begin(config, workdir)
    plan = run.plan
    options = run.options
    log.info("%s.", describe_trained(layout, lora=options.lora, groups=options.groups))
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    teacher = load_teacher(run)
    train_step = make_step(run, shardings, jax.tree.map(lambda leaf: leaf.sharding, teacher))
    constants = () if teacher is None else (teacher,)
    weights, predict = make_evaluation(run, shardings)
    with (
        stop_on_sigterm() as stop,
        Checkpoints(
            workdir / CHECKPOINTS,
            newest=plan.keep_checkpoints,
            best=plan.keep_best,
            every=plan.keep_every,
        ) as checkpoints,
        profiled(train_step, profile, workdir / PROFILE) as train_step,
    ):
        state, step = checkpoints.restore_or(lambda: create(run, init_key), layout)
        with (
            contextlib.closing(Recorder(workdir, plan, run.schedule, start_step=step)) as recorder,
            contextlib.closing(run.make_train_batches(step, plan.total_steps)) as batches,
        ):
            for batch in recorder.inputs(batches):
                state, metrics = train_step(state, batch, step_key, *constants)
                step += 1
                recorder.record(step, metrics)
                tested = {}
                if plan.evaluates_at(step):
                    tested = evaluate(run, predict, weights(state), step=step)
                    recorder.write(step, tested)
                stopping = stop()
                if plan.saves_at(step) or stopping:
                    recorder.settle()  # raises rather than that broken numbers are saved
                    checkpoints.save(state, next_batch=step, metrics=tested)
                if stopping and step < plan.total_steps:
                    raise StoppedError.at(step, plan.total_steps)
        if plan.final == "best":
            state = checkpoints.restore_best(layout)
    step = int(state.step)
    return finish(config, run, workdir, weights(state), predict, step=step, command=command)


def begin(config: ConfigDict, workdir: str | os.PathLike[str]) -> tuple[Run, TrainState, Path]:
    """Prepares the run, lays out its state and claims its folder, or raises: all hosts alike."""
    versions = {"vitswin_jax": __version__, "jax": jax.__version__}
    check_same(flatten(config.to_dict()) | {"--workdir": str(workdir)} | versions)
    with raising_together():
        if config.compare_to is not None:
            check_comparable(config.to_dict(), config.compare_to)
        run = prepare(config, Path(workdir).expanduser())
        layout = state_layout(run.model, run.tx, **run.state)
    check_same(run.facts)
    with raising_together():
        workdir = claim_workdir(workdir, config.to_dict())
        save_start(workdir, run.start)
    with raising_together():
        check_shared(workdir)
    return run, layout, workdir


def create(run: Run, key: jax.Array) -> TrainState:
    """Creates the state before the first step, of loaded weights or by chance."""
    loaded = run.start.load(head_bias=run.head_bias)
    state, _ = create_state(
        run.model, run.tx, key, head_bias=run.head_bias, loaded=loaded, **run.state
    )
    return state


def load_teacher(run: Run) -> Params | None:
    """Returns the parameters of the run's teacher on its mesh, None where it has no teacher."""
    if run.teacher is None:
        return None
    return place_constants(run.teacher.load(head_bias=0.0), run.mesh)


def make_evaluation(
    run: Run, shardings: TrainState
) -> tuple[Callable[[TrainState], Params], Predict]:
    """Returns two functions: to the parameters of a state that are evaluated and saved, and from
    them and this host's rows of a batch to what the eval step gives.
    """
    options, preprocess = run.options, run.preprocess
    average = options.ema is not None and options.ema.evaluate
    weights, param_shardings = make_weights(
        lora=options.lora, average=average, param_shardings=shardings.params
    )
    if options.masked:
        return weights, pretraining.make_predict(run, param_shardings)
    eval_step = make_eval_step(
        run.model,
        mean=preprocess.mean,
        std=preprocess.std,
        mesh=run.mesh,
        param_shardings=param_shardings,
    )
    return weights, lambda params, batch: eval_step(params, shard_batch(batch, run.mesh))


def make_eval_step(
    model: nn.Module, *, mean: Triple, std: Triple, mesh: Mesh, param_shardings: Any
) -> Callable[[Params, dict[str, Array]], Metrics]:
    """Compiles `eval_step` for a mesh, as `compile_for_hosts` does."""
    step = functools.partial(eval_step, model=model, mean=mean, std=std)
    return compile_for_hosts(step, mesh=mesh, param_shardings=param_shardings)


def evaluate(run: Run, predict: Predict, params: Params, *, step: int) -> dict[str, float]:
    """Returns mean loss and accuracy over all examples of the test batches.

    Of a run without labels, what `pretraining.evaluate` does.
    """
    if run.options.masked:
        return pretraining.evaluate(run, predict, params, step=step)
    totals = dict.fromkeys(("loss", "correct", "count"), jnp.zeros(()))
    for batch in run.test_batches:
        sums = predict(params, batch)
        totals = {key: total + sums[key] for key, total in totals.items()}
    loss, correct, count = (float(totals[key]) for key in totals)
    return {"test/loss": loss / count, "test/accuracy": correct / count}


def finish(
    config: ConfigDict,
    run: Run,
    workdir: Path,
    params: Params,
    predict: Predict,
    *,
    step: int,
    command: str | None,
) -> Result | pretraining.PretrainingResult:
    """Tests a step's parameters on the whole split; the first host writes weights and report."""
    origin = None if run.start.origin is None else dataclasses.asdict(run.start.origin)
    provenance = {
        "dataset": config.data.dataset,
        "data_dir": config.data.data_dir,
        "train_split": config.data.train_split,
        "test_split": config.data.test_split,
        "holdout": config.data.holdout,
        "multi_label": run.train.multi_label,
        "init_from": origin,
        "seed": config.seed,
        "step": step,
        "command": command,
        "version": __version__,
    }
    if run.options.masked:
        return pretraining.finish(config, run, workdir, params, predict, provenance=provenance)
    logits, labels = collect(predict(params, batch) for batch in run.test_batches)
    params = multihost_utils.process_allgather(params, tiled=True)  # whole, in the host's memory
    with raising_together():
        evaluation = summarize(logits, labels, run.test.class_names)
        if jax.process_index() == 0:
            write_results(config, run, workdir, params, evaluation, provenance=provenance)
    return Result(
        config.model.name, evaluation.top1, len(labels), workdir / WEIGHTS, workdir / REPORT
    )


def write_results(
    config: ConfigDict,
    run: Run,
    workdir: Path,
    params: Params,
    evaluation: Evaluation,
    *,
    provenance: dict[str, Any],
) -> None:
    """Writes the weights and the report."""
    save_pretrained(
        workdir / WEIGHTS,
        run.model,
        {"params": params},
        metadata={
            "name": config.model.name,
            "preprocess": run.preprocess,
            "class_names": run.train.class_names,
            "provenance": provenance,
            "metrics": {"test/accuracy": evaluation.top1, "test/loss": evaluation.loss},
        },
    )
    write_report(
        workdir / REPORT,
        title=f"{config.model.name} on {config.data.dataset}",
        model=run.model,
        params=params,
        evaluation=evaluation,
        source=run.test,
        preprocess=run.preprocess,
        workdir=workdir,
        command=provenance["command"],
        origin=provenance["init_from"],
        compare_to=config.compare_to,
    )

"""The compiled functions of a run: its train step, and its evaluation steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax

from vitswin_jax.core.types import Batch, Params
from vitswin_jax.nn.layers import pair
from vitswin_jax.train.run.announce import saying_when_it_compiles
from vitswin_jax.train.run.prepare import Run
from vitswin_jax.train.run.sizes import Size, at_size
from vitswin_jax.train.sharding import shard_batch
from vitswin_jax.train.state import TrainState, make_weights
from vitswin_jax.train.step import Metrics, compile_for_hosts, make_train_step

Predict = Callable[[Params, Batch], Metrics]


@dataclass(frozen=True)
class Evaluator:
    """Compiled functions of an evaluation."""

    weights: Callable[[TrainState], Params]
    """From a state to the parameters to evaluate and save."""
    scores: Predict
    """Of parameters and this host's rows of a batch, as `features` is."""
    features: Predict


def make_steps(
    run: Run, shardings: TrainState, teacher_shardings: Params | None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the run's train step; for each image size of its batches one is compiled."""
    steps: dict[Size, Callable[..., tuple[TrainState, Metrics]]] = {}
    for size in dict.fromkeys(size for _, size in run.sizes):
        what = "the train step" + (f" for images of {size[0]}x{size[1]}" if run.sizes[1:] else "")
        step = make_step(run, shardings, teacher_shardings, size=size)
        steps[size] = saying_when_it_compiles(what, step)
    return lambda state, batch, *more: steps[batch["image"].shape[-3:-1]](state, batch, *more)


def make_step(
    run: Run,
    shardings: TrainState,
    teacher_shardings: Params | None,
    *,
    size: Size | None = None,
) -> jax.stages.Wrapped:
    """Compiles the run's train step, for the trainer and for `vitswin plan`.

    Images have the model's own size, if there is no other `size`.
    """
    model, fit = at_size(run.model, size or pair(run.model.img_size))
    return make_train_step(
        model,
        run.tx,
        options=dataclasses.replace(run.options, fit=fit),
        mesh=run.mesh,
        shardings=shardings,
        teacher_shardings=teacher_shardings,
    )


def make_evaluation(
    run: Run,
    shardings: TrainState,
    *,
    scores: Callable[..., Metrics],
    features: Callable[..., Metrics],
    teacher: Params | None = None,
) -> Evaluator:
    """Returns the compiled functions of a run's evaluations.

    `scores` and `features` are evaluation steps of parameters, batch, `model`, `mean` and `std`. If
    there is a `teacher`, the parameters of `scores` are those of "student" and "teacher".
    """
    ema, preprocess = run.options.ema, run.preprocess
    weights, param_shardings = make_weights(
        lora=run.options.lora,
        average=ema is not None and ema.evaluate,
        param_shardings=shardings.params,
    )
    how = {"model": run.model, "mean": preprocess.mean, "std": preprocess.std}

    def compiled(step: Callable[..., Metrics], shardings: Params) -> Predict:
        jitted = compile_for_hosts(
            functools.partial(step, **how), mesh=run.mesh, param_shardings=shardings
        )
        return lambda params, batch: jitted(params, shard_batch(batch, run.mesh))

    probed = compiled(features, param_shardings)
    if teacher is None:
        return Evaluator(weights, compiled(scores, param_shardings), probed)
    theirs = jax.tree.map(lambda leaf: leaf.sharding, teacher)
    both = compiled(scores, {"student": param_shardings, "teacher": theirs})
    return Evaluator(
        weights, lambda params, batch: both({"student": params, "teacher": teacher}, batch), probed
    )

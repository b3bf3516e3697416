"""Trials: a config's train step, compiled and run for seconds, at learning rates that rise.

A trial writes nothing. It takes the run's own batches and its own step, so its images/s are the
run's, input included.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitswin_jax.core.types import Source
from vitswin_jax.train.run.compile import make_step
from vitswin_jax.train.run.inputs import open_data
from vitswin_jax.train.run.plan import UNITS, Count
from vitswin_jax.train.run.prepare import prepare
from vitswin_jax.train.state import state_layout
from vitswin_jax.trainer import create, load_teacher

STEPS = 48
"""Steps of a range test."""
LOWEST, HIGHEST = 3e-5, 3e-2
"""Learning rates of a range test."""
_WINDOW = 4  # steps between two looks at the clock, so that the host may run ahead
_ALONE = 2  # steps after the first that are timed one by one, for they may take long
_SMOOTH = 0.8  # of a loss that is smoothed, the share of the smoothed one before
_BELOW = 3.0  # times lower than the rate of the least loss


@dataclass(frozen=True)
class Trial:
    """Measurements of a trial."""

    seconds_per_step: float
    """The median over the trial's windows, with the wait for input."""
    compile_seconds: float
    """Until the first step's numbers were there: tracing, compiling, and starting the input."""
    rates: Sequence[float]
    losses: Sequence[float]
    """Of the steps at `rates`."""
    whole: bool
    """Whether the test went through all its rates, or until the loss was lost."""

    @property
    def rate(self) -> float | None:
        """The learning rate to take: below that of the least smoothed loss; None: not found."""
        smoothed = smooth(self.losses)
        best = int(np.argmin(smoothed)) if len(smoothed) else 0
        falls = len(smoothed) and smoothed[best] < smoothed[0] / 1.01
        if not self.whole or not falls:
            return None
        return self.rates[best] / _BELOW


def smooth(losses: Sequence[float]) -> np.ndarray:
    """Returns exponential means of losses, each divided by its own weights' sum."""
    out, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        out.append(mean / weight)
    return np.array(out)


def try_out(config: ConfigDict, *, seconds: float, data: tuple[Source, Source]) -> Trial:
    """Trains by `config` for about `seconds` after compiling, at rates that rise by equal factors.

    `data` are the train and the test split. Raises UserError as the run itself would.
    """
    run = prepare(rising(config), opener=functools.partial(open_data, opened=data))
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    layout = state_layout(run.model, run.tx, **run.state)
    teacher = load_teacher(run)
    shardings, of_teacher = jax.tree.map(lambda leaf: leaf.sharding, (layout, teacher))
    step = make_step(run, shardings, of_teacher)
    constants = () if teacher is None else (teacher,)
    state = create(run, init_key)
    begin = time.monotonic()
    compiled, total, spent, losses = 0.0, 0.0, [], []
    with contextlib.closing(run.make_train_batches(0, run.plan.total_steps)) as batches:
        window: list[Any] = []
        for number, batch in enumerate(batches):
            state, metrics = step(state, batch, step_key, *constants)
            window.append(metrics["loss"])
            if number <= _ALONE or number % _WINDOW == 0:
                losses += [float(loss) for loss in window]  # waits for the devices
                now = time.monotonic()
                if number == 0:
                    compiled = now - begin
                else:
                    spent.append((now - begin) / len(window))
                    total += now - begin
                window, begin = [], now
                if spent and (total > seconds or _is_lost(losses)):
                    break
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)[: len(losses)].tolist()
    whole = len(losses) > STEPS - _WINDOW or _is_lost(losses)
    return Trial(statistics.median(spent), compiled, rates, losses, whole)


def _is_lost(losses: Sequence[float]) -> bool:
    """Returns whether the rate has become so high that the loss is far above its least."""
    if not all(map(math.isfinite, losses)):
        return True
    smoothed = smooth(losses)
    return bool(len(smoothed) > STEPS // 3 and smoothed[-1] > 1.5 * smoothed.min())


def rising(config: ConfigDict) -> ConfigDict:
    """Returns a config of `STEPS` steps, at rates from `LOWEST` to `HIGHEST`, without checks."""
    rising = copy.deepcopy(config)
    rising.data.img_sizes = ()  # at the size of evaluation
    optim = rising.optim
    for count in (Count("optim", name) for name in ("total", "warmup", "cooldown", "timescale")):
        optim.update(dict.fromkeys(map(count.key, UNITS)))
    optim.update(
        schedule="multistep",
        schedule_unit="step",
        end_lr=0.0,
        warmup_lr=0.0,
        total_steps=STEPS,
        peak_lr=LOWEST,
        milestone_epochs=(),
        milestone_examples=(),
        milestone_steps=tuple(range(1, STEPS)),
        gamma=(HIGHEST / LOWEST) ** (1 / (STEPS - 1)),
    )
    return rising

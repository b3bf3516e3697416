"""Chooses a recipe by trials: a model's size, the batch, the learning rate and the epochs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Source, UserError, counted
from vitswin_jax.train.run.inputs import open_data
from vitswin_jax.tune.clock import Clock, Costs, evaluations_in
from vitswin_jax.tune.sizes import (
    Images,
    Keys,
    Size,
    image_sizes,
    ladder,
    look_at,
    machine_flops,
)
from vitswin_jax.tune.trial import STEPS, Trial, try_out

log = logger(__name__)

FRESH, TUNED = "fresh", "tuned"
"""Kinds of starts: parameters that are drawn, and weights."""
ENOUGH = {FRESH: (40, 50_000, 600_000), TUNED: (8, 4_000, 60_000)}
"""Images that a size should see: so many times each, but at least, and at most."""
RATES = {FRESH: (2e-4, 3e-3), TUNED: (2e-5, 1e-3)}
"""The least and the highest learning rate that a range test may choose."""
BATCHES = 32, 512
_STEPS = 1500  # a run's, by which its batch is chosen
_STEPS_AN_EPOCH = 16
_FIRST_GUESS = 0.7  # of the time that is left, what training is taken to have
_TRYING = 0.06  # of the time, what a trial's steps take at most
_MORE = 0.15  # of the time: a second trial is taken where the first was cheaper
_AS_COMPILED = 1.15  # times a step's compilation, what a run takes to start
_PAGE = 3.0  # seconds that weights and a page take to be written
_FORWARD = 3.0  # times faster than training, what an evaluation is taken to be
_MANY_EPOCHS = 80  # from so many on, images are mixed and cropped as far as DeiT does


@dataclass(frozen=True)
class Task:
    """The keys to choose, and those that are set already."""

    make: Callable[[Keys], ConfigDict]
    """Returns the config with these keys, and with what the user has set in their place."""
    fixed: Collection[str]
    """Keys that the user has set."""
    recipe: bool = False
    """Whether a recipe is given, of which only the length is chosen."""
    own_images: bool = False
    """Whether the recipe knows how these images are prepared and augmented."""

    @functools.cached_property
    def start(self) -> str:
        """Returns the kind of the run's start."""
        return FRESH if self.make({}).init_from is None else TUNED

    def sizes(self, images: Images) -> list[Size]:
        """Returns the sizes among which to choose."""
        config = self.make({})
        if self.start == FRESH and not self.recipe and "model.name" not in self.fixed:
            side = config.model.img_size if "model.img_size" in self.fixed else None
            return ladder(images, side)
        sizes = image_sizes(config)
        return sizes[-1:] if self.recipe or "model.img_size" in self.fixed else sizes


@dataclass(frozen=True)
class Choice:
    """The choices, their reasons, and the time that the run is expected to take."""

    keys: Keys
    config: ConfigDict
    costs: Costs
    images: int
    """Of the training split."""
    reasons: Sequence[str]


def choose(task: Task, clock: Clock) -> Choice:
    """Chooses a recipe for the time that is left; logs each reason as it is found.

    Raises UserError where the time is too short for a few steps, and as the run itself would.
    """
    config = task.make({})
    data = train, test = open_data(dict(config.data), seed=config.seed)
    images = look_at(train)
    reasons: list[str] = []

    def say(text: str) -> None:
        reasons.append(text)
        log.info("minutes: %s", text)

    colours = "grey" if images.grey else "in colour"
    say(f"data: {counted(images.count, 'image')}, {colours}, {images.side} px high or wide.")
    sizes = task.sizes(images)
    size, batch, trial, why = _try_sizes(task, images, sizes, clock, data)
    say(f"size: {size.name}; {why}")
    config = task.make(_keys_of(task, images, size, batch, epochs=0.0))
    batch = config.data.batch_size
    pace = batch / trial.seconds_per_step
    say(f"batch size: {batch}; measured: {pace:,.0f} images/s.")
    rate, why = _rate(task, trial, config)
    say(f"learning rate: {rate:.2g}; {why}")
    costs = Costs(
        step=trial.seconds_per_step,
        evaluation=_PAGE + len(test) / (_FORWARD * pace),
        start=1.0 + _AS_COMPILED * trial.compile_seconds,
    )
    evaluations = evaluations_in(clock.seconds, costs)
    steps = costs.steps_in(clock.left, evaluations)
    if steps < 2 * evaluations:
        enough = clock.spent + costs.start + evaluations * (costs.evaluation + 10 * costs.step)
        raise UserError(
            f"--minutes={clock.seconds / 60:g} is too short: {clock.spent:.0f} s went to the trial,"
            f" and a step of {batch} images takes {trial.seconds_per_step:.2g} s here; give "
            f"{math.ceil(enough / 60)} or more."
        )
    epochs = steps * batch / images.count
    keys = dict(_keys_of(task, images, size, batch, epochs=epochs))
    if not task.recipe:
        keys["optim.peak_lr"] = rate
    keys |= length(steps, evaluations, images=images.count, batch=batch)
    if not task.recipe:
        keys |= {"optim.warmup_epochs": round(min(5.0, 0.1 * epochs), 3)}
    say(
        f"length: {epochs:.3g} epochs, {steps:,} steps; of {clock.seconds:.0f} s the trial took "
        f"{clock.spent:.0f}, compiling may take {costs.start:.0f}, and {evaluations} evaluations "
        f"{evaluations * costs.evaluation:.0f}."
    )
    config = task.make(keys)
    return Choice(keys, config, costs, images.count, tuple(reasons))


def length(
    steps: int, evaluations: int, *, images: int, batch: int, done: int = 0
) -> dict[str, Any]:
    """Returns the keys of a run's length, and of the evaluations after `done` of its steps."""
    every = max(1, math.ceil((steps - done) / evaluations))
    return {
        "optim.total_steps": None,
        "optim.examples": None,
        "optim.epochs": float(f"{steps * batch / images:.7g}"),  # short to read, the same steps
        "run.eval_epochs": 0.0,
        "run.eval_steps": every,
        "run.checkpoint_epochs": 0.0,
        "run.checkpoint_steps": every,
        "run.log_steps": min(50, max(1, steps // 40)),
    }


def _try_sizes(
    task: Task,
    images: Images,
    sizes: Sequence[Size],
    clock: Clock,
    data: tuple[Source, Source],
) -> tuple[Size, int, Trial, str]:
    """Picks a size by the machine's speed, tries it out, and another one if that was wrong."""
    enough = _enough(images, task.start)
    size, sees = _pick(sizes, machine_flops(), _FIRST_GUESS * clock.left, enough)
    tried = []
    while True:
        tried.append(size)
        began, batch = clock.spent, batch_for(sees, images.count)
        config = task.make(_keys_of(task, images, size, batch, epochs=0.0))
        trial = try_out(config, seconds=_TRYING * clock.seconds, data=data)
        cost = clock.spent - began
        flops = size.flops * config.data.batch_size / trial.seconds_per_step
        seconds = _FIRST_GUESS * clock.left
        better, sees_then = _pick(sizes, flops, seconds, enough)
        if (
            better in tried
            or cost > _MORE * clock.seconds
            or clock.spent > 2 * _MORE * clock.seconds
        ):
            break
        size, sees = better, sees_then
    sees = max(0.0, seconds) * flops / size.flops
    why = f"it sees about {sees:,.0f} images, {sees / images.count:.2g} times each."
    if len(sizes) > 1:
        seen = f"can see {enough:,.0f} images in its steps"
        rule = f"the largest of {len(sizes)} that {seen}, or the smallest"
        if better is not size:
            rule = f"{better.name} may suit better, but was tried, or would take too long to try"
        why = f"{rule}; {why}"
    return size, batch, trial, why


def _enough(images: Images, start: str) -> int:
    times, least, most = ENOUGH[start]
    return min(max(times * images.count, least), most)


def _pick(sizes: Sequence[Size], flops: float, seconds: float, enough: int) -> tuple[Size, float]:
    """Returns the largest size that sees 0.7 times enough images, else the smallest.

    Besides it returns how many images that sees.
    """
    sees = [seconds * flops / size.flops for size in sizes]
    last = max((i for i, count in enumerate(sees) if count >= 0.7 * enough), default=0)
    return sizes[last], sees[last]


def batch_for(images_seen: float, images: int, devices: int | None = None) -> int:
    """Returns a batch size with which a run takes about `_STEPS` steps: a power of 2.

    An epoch has `_STEPS_AN_EPOCH` or more. The batch is a multiple of the number of devices.
    """
    devices = jax.device_count() if devices is None else devices
    least, most = BATCHES
    wanted = min(images_seen / _STEPS, images / _STEPS_AN_EPOCH, float(most * devices))
    batch = max(2 ** math.floor(math.log2(max(wanted, 1.0))), least)
    return -(-batch // devices) * devices


def _keys_of(task: Task, images: Images, size: Size, batch: int, *, epochs: float) -> Keys:
    """Returns the keys of a size and a batch, and of the augmentation for a number of epochs."""
    if task.recipe:
        return {}
    keys = dict(size.keys) | {"data.batch_size": batch, "data.eval_batch_size": max(batch, 64)}
    if not task.own_images:
        keys |= augmentation(images, epochs, task.start)
    return keys


def augmentation(images: Images, epochs: float, start: str) -> dict[str, Any]:
    """Returns the augmentation: stronger if training sees each image more often."""
    keys: dict[str, Any] = {"augment.label_smoothing": 0.1, "model.drop_path_rate": 0.0}
    if images.small and start == FRESH:
        half = (0.5, 0.5, 0.5)
        keys |= {"preprocess.mean": half, "preprocess.std": half}
        keys |= {"preprocess.crop_mode": "squash", "preprocess.crop_fraction": 1.0}
        keys |= {"augment.crop": "shift", "augment.shift": 0.1, "augment.flip": not images.grey}
    elif epochs < _MANY_EPOCHS:
        keys |= {"augment.scale": (0.35, 1.0)}
    if epochs < _MANY_EPOCHS:
        return keys | {"augment.mixup_alpha": 0.0, "augment.cutmix_alpha": 0.0}
    return keys | {"augment.mixup_alpha": 0.2, "model.drop_path_rate": 0.1}


def _rate(task: Task, trial: Trial, config: ConfigDict) -> tuple[float, str]:
    """Returns the learning rate, and why."""
    if task.recipe or "optim.peak_lr" in task.fixed:
        return config.optim.peak_lr, "it was given."
    low, high = RATES[task.start]
    if trial.rate is None:
        return config.optim.peak_lr, "the recipe's, for the range test showed no minimum."
    rate = float(f"{min(max(trial.rate, low), high):.2g}")
    why = f"a third of where the loss was least in {STEPS} steps at rates that rise"
    return rate, f"{why}, and not outside {low:g} to {high:g}."

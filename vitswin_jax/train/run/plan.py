"""Everything counted in steps: the one place where epochs and examples become steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.core.terminal import logger

log = logger(__name__)

UNITS = ("steps", "epochs", "examples")
FINALS = ("last", "best")


@dataclass(frozen=True)
class Count:
    """Something that a config counts, by one of three keys; the others are 0 or None."""

    section: str
    name: str
    needed: bool = False

    def key(self, unit: str) -> str:
        """Returns the key of its section that says it in `unit`."""
        if self.name == "total":  # epochs and examples say of themselves what they are of
            return "total_steps" if unit == "steps" else unit
        return f"{self.name}_{unit}"


COUNTS = (
    Count("optim", "total", needed=True),
    Count("optim", "warmup"),
    Count("optim", "cooldown"),
    Count("optim", "timescale"),
    Count("optim", "milestone"),  # several: a tuple
    Count("run", "log", needed=True),
    Count("run", "eval", needed=True),
    Count("run", "checkpoint", needed=True),
    Count("run", "keep_every"),
)


class RecipesFloat(float):
    """A count that a recipe states and nobody has set by hand."""


class RecipesInt(int):
    """A count of steps or examples that a recipe states and nobody has set by hand."""


GIVE_WAY = ("warmup", "cooldown")
"""Counts of `config.optim` that a recipe's shorter run shortens, unless they were set by hand."""
AT_MOST = 0.25
"""The largest part of a run that each of them takes then."""


def of_recipe(value: int | float) -> int | float:
    """Returns a count as one that a recipe states; a value that is set by hand takes its place."""
    return RecipesInt(value) if isinstance(value, int) else RecipesFloat(value)


@dataclass(frozen=True)
class Plan:
    """The length and the cadences of a run, in steps."""

    total_steps: int
    warmup_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    batch_size: int
    steps_per_epoch: float  # a batch may straddle two epochs
    cooldown_steps: int = 0
    timescale_steps: int | None = None
    milestone_steps: tuple[int, ...] = ()
    keep_best: int = 0
    keep_every: int | None = None
    final: str = "last"
    patience: int | None = None
    local_dir: str = ""
    """A folder on each host's disk for the sets of `train.keep.local`, "" for none."""
    local_seconds: float = 60.0
    local_copies: bool = True

    def logs_at(self, step: int) -> bool:
        """Returns whether metrics are logged after `step`."""
        return due(step, self.log_every, total=self.total_steps)

    def evaluates_at(self, step: int) -> bool:
        """Returns whether the test split is evaluated after `step`."""
        return due(step, self.eval_every, total=self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Returns whether a checkpoint is saved after `step`: where one is due, or may be kept."""
        return (
            due(step, self.checkpoint_every, total=self.total_steps)
            or (self.keep_best > 0 and self.evaluates_at(step))
            or (self.keep_every is not None and step % self.keep_every == 0)
        )

    def schedule_counts(self) -> dict[str, Any]:
        """Returns the counts of the learning rate's schedule, by `make_schedule`'s names."""
        names = ("total", "warmup", "cooldown", "timescale", "milestone")
        counts = {f"{name}_steps": getattr(self, f"{name}_steps") for name in names}
        return counts | {"steps_per_epoch": self.steps_per_epoch}


def make_plan(
    optim: dict[str, Any],
    run: dict[str, Any],
    *,
    num_examples: int,
    batch_size: int,
) -> Plan:
    """Returns the run's plan, each count rounded to whole steps, at least 1.

    Takes the counts from `config.optim`, as plain data, and leaves the rest there; reads all of
    `config.run`. Raises UserError that lists every count that is given twice, is negative, or is
    not above 0 where it has to be, and ValueError for a key of `run` that nothing reads.
    """
    sections, faults = {"optim": optim, "run": run}, Faults()
    steps: dict[str, Any] = {}
    by_recipe: list[str] = []
    for count in COUNTS:
        section = sections[count.section]
        given = {unit: section.pop(count.key(unit)) for unit in UNITS if count.key(unit) in section}
        faults += _wrong(count, given)
        if any(isinstance(value, RecipesFloat | RecipesInt) for value in given.values() if value):
            by_recipe.append(count.name)
        per_step = {
            "steps": 1.0,
            "epochs": batch_size / num_examples,
            "examples": float(batch_size),
        }
        steps[count.name] = next(
            (_to_steps(value, per_step[unit]) for unit, value in given.items() if value), None
        )
    kept = {
        key: run.pop(key, None) for key in ("keep_checkpoints", "keep_best", "final", "patience")
    }
    local = {"local_dir": run.pop("local_dir", ""), "local_seconds": run.pop("local_seconds", 60.0)}
    faults += _wrong_kept(**kept) + _wrong_local(**local)
    copies = run.pop("local_copies", True)
    faults.check()
    steps |= _shortened(by_recipe, steps)
    if run:
        raise ValueError(f"nothing reads run.{', run.'.join(run)}.")
    return Plan(
        total_steps=steps["total"],
        warmup_steps=steps["warmup"] or 0,
        cooldown_steps=steps["cooldown"] or 0,
        timescale_steps=steps["timescale"],
        milestone_steps=steps["milestone"] or (),
        log_every=steps["log"],
        eval_every=steps["eval"],
        checkpoint_every=steps["checkpoint"],
        **kept,
        **local,
        local_copies=copies,
        keep_every=steps["keep_every"],
        batch_size=batch_size,
        steps_per_epoch=num_examples / batch_size,
    )


def _shortened(by_recipe: Sequence[str], steps: Mapping[str, Any]) -> dict[str, int]:
    """Returns the counts that a recipe states and that are too long for this run; says so."""
    most = min(math.ceil(AT_MOST * steps["total"]), steps["total"] - 1)  # of one step: none
    shortened = {name: most for name in by_recipe if name in GIVE_WAY and steps[name] > most}
    for name, count in shortened.items():
        log.info(
            "steps: the recipe's %s of %d steps is shortened to %d, a quarter of the run "
            "(optim.%s_epochs).",
            name,
            steps[name],
            count,
            name,
        )
    return shortened


def _wrong_kept(
    *, keep_checkpoints: int, keep_best: int, final: str, patience: int | None
) -> Faults:
    faults = Faults()
    faults.need(
        patience is None or patience > 0, f"run.patience={patience} must be above 0, or None"
    )
    faults.need(keep_checkpoints > 0, f"run.keep_checkpoints={keep_checkpoints} must be above 0")
    faults.need(keep_best >= 0, f"run.keep_best={keep_best} must be 0 or more")
    faults += wrong_choice("run.final", final, FINALS)
    faults.need(keep_best or final != "best", "run.final='best' needs run.keep_best above 0")
    return faults


def _wrong_local(*, local_dir: str, local_seconds: float) -> Faults:
    faults = Faults()
    faults.need(
        "://" not in local_dir and "\0" not in local_dir,
        f"run.local_dir={local_dir} must be a folder on the disk of each host",
    )
    faults.need(0 < local_seconds < math.inf, f"run.local_seconds={local_seconds} must be above 0")
    return faults


def _to_steps(value: Any, per_step: float) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_to_steps(each, per_step) for each in value)
    return max(1, round(value / per_step))


def _wrong(count: Count, given: Mapping[str, Any]) -> list[str]:
    """Returns the faults of the values of a count's keys."""
    said = {f"{count.section}.{count.key(unit)}": value for unit, value in given.items()}
    values = {
        key: value if isinstance(value, tuple | list) else (value,)
        for key, value in said.items()
        if value
    }
    if negative := [key for key, each in values.items() if not min(each) > 0]:
        least = "above 0" if count.needed else "0 or more"
        return [f"{key}={said[key]} must be {least}" for key in negative]
    if len(values) > 1:
        twice = " and ".join(f"{key}={said[key]}" for key in values)
        return [f"{twice} say the same twice; set all but one to 0"]
    if count.needed and not values:
        zeros = [f"{key}={value}" for key, value in said.items() if value is not None]
        keys = [f"{count.section}.{count.key(unit)}" for unit in UNITS]
        return [
            f"{' and '.join(zeros) or keys[0]} must be above 0, or another of {', '.join(keys)}"
        ]
    return []


def due(step: int, every: int, *, total: int) -> bool:
    """Returns whether something done `every` steps is to be done after `step` of `total`."""
    return step % every == 0 or step == total


def split_fields(section: Mapping[str, Any], *kinds: type) -> list[dict[str, Any]]:
    """Divides a section's keys among dataclasses by their fields.

    Raises ValueError for keys that none has, so that none goes unread.
    """
    parts = [
        {key: section[key] for key in section if key in {f.name for f in dataclasses.fields(kind)}}
        for kind in kinds
    ]
    if unread := set(section) - {key for part in parts for key in part}:
        raise ValueError(f"nothing reads {', '.join(sorted(unread))}.")
    return parts

"""Everything counted in steps: the one place where epochs become steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitswin_jax.types import UserError


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

    def logs_at(self, step: int) -> bool:
        """Returns whether metrics are logged after `step`."""
        return due(step, self.log_every, total=self.total_steps)

    def evaluates_at(self, step: int) -> bool:
        """Returns whether the test split is evaluated after `step`."""
        return due(step, self.eval_every, total=self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Returns whether a checkpoint is saved after `step`."""
        return due(step, self.checkpoint_every, total=self.total_steps)


def make_plan(
    *,
    num_examples: int,
    batch_size: int,
    epochs: float,
    warmup_epochs: float,
    log_steps: int,
    eval_epochs: float,
    checkpoint_epochs: float,
    keep_checkpoints: int,
) -> Plan:
    """Returns the run's plan, each count rounded to whole steps.

    Raises UserError that lists every count that is not above 0.
    """
    wrong = [
        f"{key}={value} must be above 0"
        for key, value in (
            ("optim.epochs", epochs),
            ("run.log_steps", log_steps),
            ("run.eval_epochs", eval_epochs),
            ("run.checkpoint_epochs", checkpoint_epochs),
            ("run.keep_checkpoints", keep_checkpoints),
        )
        if not value > 0
    ]
    if not warmup_epochs >= 0:
        wrong.append(f"optim.warmup_epochs={warmup_epochs} must be 0 or more")
    if wrong:
        raise UserError("; ".join(wrong) + ".")
    per_epoch = num_examples / batch_size

    def steps(count: float) -> int:
        return max(1, round(count * per_epoch))

    return Plan(
        total_steps=steps(epochs),
        warmup_steps=round(warmup_epochs * per_epoch),
        log_every=log_steps,
        eval_every=steps(eval_epochs),
        checkpoint_every=steps(checkpoint_epochs),
        keep_checkpoints=keep_checkpoints,
        batch_size=batch_size,
        steps_per_epoch=per_epoch,
    )


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

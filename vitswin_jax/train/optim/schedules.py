"""Learning rates as functions of the step, from the keys of `config.optim`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from vitswin_jax.core.choices import Faults, one_of, own_keys
from vitswin_jax.core.types import UserError

# A decay is made from the peak, the end and its length, and from keys that it alone reads; it
# counts from its own start.


def _cosine(peak: float, end: float, length: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(length, 1), alpha=end / peak if peak else 0.0)


def _linear(peak: float, end: float, length: int) -> optax.Schedule:
    return optax.linear_schedule(peak, end, max(length, 1))


def _constant(peak: float, end: float, length: int) -> optax.Schedule:
    del end, length
    return optax.constant_schedule(peak)


def _rsqrt(
    peak: float, end: float, length: int, *, timescale_steps: int | float = 10_000
) -> optax.Schedule:
    del end, length
    return lambda t: peak / jnp.sqrt(1 + t / timescale_steps)


def _multistep(
    peak: float,
    end: float,
    length: int,
    *,
    milestone_steps: Sequence[int] = (),
    gamma: float = 0.1,
) -> optax.Schedule:
    del end, length
    return optax.piecewise_constant_schedule(peak, dict.fromkeys(milestone_steps, gamma))


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "cosine": _cosine,
    "linear": _linear,
    "rsqrt": _rsqrt,
    "multistep": _multistep,
    "constant": _constant,
}
END_BY_THEMSELVES = ("cosine", "linear")  # the others reach `end_lr` by a cooldown alone


def make_schedule(
    *,
    schedule: str,
    peak_lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    warmup_lr: float = 0.0,
    end_lr: float = 0.0,
    cooldown_steps: int = 0,
    warmup_prefix: bool = True,
    milestone_steps: Sequence[int] = (),
    timescale_steps: int | float | None = None,
    gamma: float | None = None,
    schedule_unit: str = "step",
    steps_per_epoch: float | None = None,
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0; docs/optim.md has the formulas.

    The rate rises linearly from `warmup_lr` to `peak_lr` over `warmup_steps`, follows `schedule`,
    and falls linearly to `end_lr` over the last `cooldown_steps`. With `warmup_prefix` the decay
    begins after the warmup; without it, at step 0, under the warmup. Milestones count from step 0.
    With `schedule_unit` "epoch" the rate changes once an epoch, and every count is of whole epochs.
    Raises UserError for an unknown schedule, keys that it does not read, and counts that do not fit
    each other.
    """
    make = one_of("optim.schedule", schedule, SCHEDULES)
    one_of("optim.schedule_unit", schedule_unit, ("step", "epoch"))
    given = {"milestone_steps": tuple(milestone_steps) or None, "gamma": gamma}
    given["timescale_steps"] = timescale_steps
    own = own_keys(f"schedule={schedule!r}", make, given)
    counts = {"total": total_steps, "warmup": warmup_steps, "cooldown": cooldown_steps}
    rates = {"peak_lr": peak_lr, "warmup_lr": warmup_lr, "end_lr": end_lr}
    _check(schedule, counts, own, rates)
    if schedule_unit == "epoch":
        counts, own = _in_epochs(counts, own, steps_per_epoch)
    start = counts["warmup"] if warmup_prefix else 0
    if "milestone_steps" in own:
        own["milestone_steps"] = [each - start for each in own["milestone_steps"]]
    decay = make(peak_lr, end_lr, counts["total"] - start, **own)
    rate = _between(decay, start, peak_lr=peak_lr, warmup_lr=warmup_lr, end_lr=end_lr, **counts)
    if schedule_unit == "step":
        return rate
    assert steps_per_epoch is not None  # as `_in_epochs` has seen
    # Exact for any number of steps an epoch, which a division in float32 is not.
    epochs = range(1, counts["total"])
    starts = np.array([math.ceil(round(i * steps_per_epoch, 6)) for i in epochs], np.int32)
    return lambda step: rate(jnp.searchsorted(starts, jnp.asarray(step), side="right"))


def _between(
    decay: optax.Schedule,
    start: int,
    *,
    peak_lr: float,
    warmup_lr: float,
    end_lr: float,
    total: int,
    warmup: int,
    cooldown: int,
) -> optax.Schedule:
    """Puts the warmup before a decay that counts from `start`, and the cooldown on its end."""

    def cooled(t: Any) -> Any:
        rate = decay(t - start)
        if not cooldown:
            return rate
        return end_lr + (rate - end_lr) * jnp.clip((total - t) / cooldown, 0.0, 1.0)

    if not warmup:
        return cooled
    rise = optax.linear_schedule(warmup_lr, peak_lr, warmup)
    return optax.join_schedules([rise, lambda t: cooled(t + warmup)], [warmup])


def _check(
    schedule: str,
    counts: Mapping[str, int],
    own: Mapping[str, Any],
    rates: Mapping[str, float],
) -> None:
    total, warmup, cooldown = counts["total"], counts["warmup"], counts["cooldown"]
    end_lr = rates["end_lr"]
    faults = Faults()
    for key, rate in rates.items():
        faults.need(0 <= rate < math.inf, f"{key}={rate} must be 0 or more, such as 0.001")
    if warmup and warmup >= total:
        faults.append(f"the warmup of {warmup} steps must be shorter than the run of {total}")
    elif cooldown and warmup + cooldown > total:
        faults.append(
            f"the warmup of {warmup} and the cooldown of {cooldown} steps do not fit in the run of "
            f"{total}"
        )
    ends = not end_lr or cooldown or schedule in END_BY_THEMSELVES
    faults.need(
        ends,
        f"end_lr={end_lr} needs a cooldown with schedule={schedule!r}, which has no end of its own",
    )
    if schedule == "multistep":
        milestones = own["milestone_steps"]
        if not milestones:
            faults.append("'multistep' needs milestones, such as milestone_epochs=(60.0, 90.0)")
        elif sorted(set(milestones)) != list(milestones) or milestones[0] < warmup:
            faults.append(
                f"the milestones at steps {milestones} must rise, from the warmup's end at {warmup}"
            )
    timescale = own.get("timescale_steps", 1)
    faults.need(timescale > 0, f"the timescale of {timescale} steps must be above 0")
    faults.check("optim: ")


def _in_epochs(
    counts: Mapping[str, int], own: Mapping[str, Any], steps_per_epoch: float | None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Returns the same counts in whole epochs; raises UserError for one that is no such number."""
    if steps_per_epoch is None:
        raise UserError("optim.schedule_unit='epoch' needs steps_per_epoch.")
    broken = []

    def epochs(name: str, steps: int) -> int:
        count = round(steps / steps_per_epoch)
        if abs(count * steps_per_epoch - steps) > 0.51:  # the steps themselves are rounded
            broken.append(f"{name} is {steps / steps_per_epoch:.4g}")
        return count

    own = dict(own)
    out = {name: epochs(name, steps) for name, steps in counts.items()}
    if "timescale_steps" in own:
        own["timescale_steps"] = own["timescale_steps"] / steps_per_epoch
    if "milestone_steps" in own:
        own["milestone_steps"] = [epochs("milestone", each) for each in own["milestone_steps"]]
    if broken:
        raise UserError(
            f"optim.schedule_unit='epoch' counts whole epochs, but {', '.join(broken)} epochs."
        )
    return out, own

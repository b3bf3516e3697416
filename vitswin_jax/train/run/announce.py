"""Lines at a run's start: its data, devices and steps, and the changes in them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Source, counted, with_tuples
from vitswin_jax.train.optim.optimizers import SCHEDULE_KEYS
from vitswin_jax.train.optim.schedules import make_schedule
from vitswin_jax.train.run.prepare import Run
from vitswin_jax.train.run.recipe import changed_values

log = logger(__name__)

SCHEDULE = "schedule"
"""The key, in checkpoints, of the counts of the schedule; older versions wrote none."""


def facts_of_start(run: Run, *, step: int) -> list[tuple[str, str]]:
    """Returns a run's data, devices and length, by name; `step` is its first step."""
    plan, mesh = run.plan, run.mesh
    device = mesh.devices.flat[0]
    kind = ", ".join(dict.fromkeys((device.device_kind, device.platform)))
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    epochs = plan.total_steps / plan.steps_per_epoch
    facts = [
        (
            "data",
            f"{_name(run.train)}: {counted(len(run.train.class_names), 'class', 'classes')}, "
            f"{counted(len(run.train), 'image')}; tested on {_name(run.test)}: "
            f"{counted(len(run.test), 'image')}",
        ),
        ("left out", _left_out((run.train, run.test))),
        (
            "devices",
            f"{counted(mesh.size, 'device')} ({kind})"
            f"{f', mesh {axes}' if axes else ''}"
            f"{f', {jax.process_count()} hosts' if jax.process_count() > 1 else ''}"
            f", in {jnp.dtype(run.model.dtype).name}",
        ),
        (
            "steps",
            f"{plan.total_steps:,} in all, {round(plan.steps_per_epoch, 2):g} an epoch of batches "
            f"of {plan.batch_size:,} images ({round(epochs, 2):g} epochs)",
        ),
    ]
    if run.sizes[1:] or run.sizes[0][1] != run.preprocess.img_size:
        facts.append(("image sizes", _sizes(run)))
    if step:
        here = f"step {step:,} (epoch {round(step / plan.steps_per_epoch, 2):g})"
        facts.append(("resumed", f"after {here}"))
    return [(name, value) for name, value in facts if value]


def _sizes(run: Run) -> str:
    """Returns the image sizes of training, and that of evaluation."""
    each = [
        f"{size[0]}x{size[1]} from step {first + 1:,} (epoch "
        f"{round(first / run.plan.steps_per_epoch, 2):g})"
        for first, size in run.sizes
    ]
    height, width = run.preprocess.img_size
    return f"{', '.join(each)}; evaluated at {height}x{width}"


def changed_keys(config: ConfigDict) -> str:
    """Returns the keys of a config that differ from the defaults, with their values."""
    return ", ".join(f"{key}={value}" for key, value in changed_values(config).items())


def announce(facts: Sequence[tuple[str, str]]) -> None:
    """Logs what `facts_of_start` returned, a line for each."""
    for name, value in facts:
        log.info("%s %s.", "trains on" if name in ("data", "devices") else f"{name}:", value)


def _name(source: Source) -> str:
    """Returns the name of a split, without the folders above a folder."""
    place, at, split = source.name.rpartition(":")
    return place.rstrip("/").rpartition("/")[2] + at + split


def _left_out(sources: Sequence[Source]) -> str:
    """Returns how many files are no part of the data, by the reason; "" where none is known."""
    folders: dict[str, Mapping[str, int]] = {}
    for source in sources:
        folders |= getattr(source, "left_out", {})  # both splits may be of one folder
    reasons = sum(map(Counter, folders.values()), Counter[str]())
    return ", ".join(f"{counted(count, 'file')} ({reason})" for reason, count in reasons.items())


def announce_schedule(
    config: ConfigDict, run: Run, before: Mapping[str, Any] | None, *, step: int
) -> None:
    """Logs how the learning rate changes where a resumed run has another length than `before`.

    `before` has the counts of the schedule that the restored checkpoint was trained by.
    """
    now = run.plan.schedule_counts()
    before = None if before is None else with_tuples(before)
    if run.schedule is None or before in (None, now) or step >= run.plan.total_steps:
        return
    optim = config.optim.to_dict()
    keys = {key: optim[key] for key in SCHEDULE_KEYS if optim.get(key) is not None}
    was = make_schedule(**keys | before)
    log.info(
        "steps: the run now has %d steps, before %d; the learning rate schedule is recomputed: "
        "at step %d the rate is %.4g, before %.4g.",
        now["total_steps"],
        before["total_steps"],
        step + 1,
        float(run.schedule(step)),
        float(was(step)),
    )


def saying_when_it_compiles(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function that says, at its first call, that it compiles, and how long."""
    first = True

    def call(*args: Any) -> Any:
        nonlocal first
        if not first:
            return function(*args)
        first, begin = False, time.monotonic()
        log.info("compiling %s.", what)
        result = function(*args)
        log.info("compiled %s in %.1f s.", what, time.monotonic() - begin)
        return result

    return call

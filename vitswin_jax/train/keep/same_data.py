"""Comparison of a run's data at a resume with those that the newest checkpoint recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.seal import seal, unsealed
from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import UserError
from vitswin_jax.data.fingerprint import changes
from vitswin_jax.train.keep.stored import FINGERPRINT
from vitswin_jax.train.keep.workdir import ACCEPTED
from vitswin_jax.weights.formats.orbax import newest_meta
from vitswin_jax.weights.runs import CHECKPOINTS

log = logger(__name__)

FLAG = "--accept_changed_data"


@dataclass(frozen=True)
class Recorded:
    """The data of a workdir's newest checkpoint."""

    step: int
    data: Mapping[str, Any] | None
    """Their fingerprint; None from a version that wrote none."""


def read_recorded(workdir: Path) -> Recorded | None:
    """Returns the data from which a run would resume, None where it begins.

    Changed data that the user accepted at this checkpoint count, and not those before.
    """
    meta = newest_meta(workdir / CHECKPOINTS)
    if meta is None:
        return None
    step, data = meta["step"], meta["data"].get(FINGERPRINT)
    accepted = _read_accepted(workdir / ACCEPTED)
    if accepted is not None and accepted["step"] == step:
        data = accepted[FINGERPRINT]
    return Recorded(step, data)


def check_same_data(
    workdir: Path, recorded: Recorded, now: Mapping[str, Any], *, accept: bool, labelled: bool
) -> bool:
    """Returns whether data changed that the user accepts (`accept`); raises UserError otherwise.

    `now` is the fingerprint of the data that are there. With `labelled` the model has a head of
    their classes, and takes no other number of them.
    """
    if recorded.data is None:
        log.info(
            "%s: the checkpoint of step %d does not record its data, so a change since then "
            "cannot be noticed.",
            workdir,
            recorded.step,
        )
        return False
    what = changes(recorded.data, now, f"step {recorded.step}")
    if not what:
        return False
    classes, had = len(now["classes"]), len(recorded.data["classes"])
    if labelled and classes != had:
        raise UserError(
            f"{workdir}: {what}; a head for {had} classes cannot resume on {classes} classes, "
            f"even with {FLAG}; restore the old data, or choose another --workdir."
        )
    if not accept:
        raise UserError(f"{workdir}: {what}; add {FLAG} to resume on the changed data.")
    log.info("%s: %s; the run resumes on the changed data, as accepted.", workdir, what)
    return True


def write_accepted(workdir: Path, step: int, data: Mapping[str, Any]) -> None:
    """Records that a run resumes on changed data, until its next checkpoint does."""
    content = seal({"step": step, FINGERPRINT: data})
    with replacing(workdir / ACCEPTED) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _read_accepted(path: Path) -> dict[str, Any] | None:
    """Returns the accepted data; None if there are none, or the file is incomplete."""
    try:
        return unsealed(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None

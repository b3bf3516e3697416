"""Weights of runs, also of one that trains: WORKDIR, `WORKDIR@STEP` and `WORKDIR@best`."""

from __future__ import annotations

from pathlib import Path

from vitswin_jax.core.types import UserError, listed
from vitswin_jax.weights.digests import file_digest
from vitswin_jax.weights.formats.orbax import is_checkpoint, sealed_in, steps_in
from vitswin_jax.weights.formats.read import read_tensors

WEIGHTS = "model.safetensors"
"""What a run calls its newest weights, or those that it ended with."""
BEST = "best.safetensors"
"""What a run calls the weights that were tested best so far."""
CHECKPOINTS, CONFIG, METRICS = "checkpoints", "config.json", "metrics.jsonl"
_BEST = "best"


def is_run(folder: Path) -> bool:
    """Returns whether a folder is a run's workdir."""
    return (folder / CHECKPOINTS).is_dir() or (folder / METRICS).is_file()


def workdir_of(weights: str) -> tuple[Path, str] | None:
    """Returns the folder that WEIGHTS names, and its STEP or `best`, "" for the newest.

    None where they are a file, or a name.
    """
    if (whole := Path(weights).expanduser()).is_dir() and not is_checkpoint(whole):
        return whole, ""
    front, at, which = weights.rpartition("@")
    folder = Path(front).expanduser()
    return (folder, which) if at and is_run(folder) else None


def newest_checkpoint(workdir: Path) -> Path | None:
    """Returns a run's newest checkpoint; None where it has none yet."""
    steps = steps_in(workdir / CHECKPOINTS)
    return workdir / CHECKPOINTS / str(steps[0]) if steps else None


def weights_of_run(workdir: Path, which: str) -> Path:
    """Returns the file, or the checkpoint, with the weights of a step or with the best.

    Raises UserError that lists what there is.
    """
    there = [file for file in (workdir / BEST, workdir / WEIGHTS) if file.exists()]
    if which == _BEST and workdir / BEST in there:
        return workdir / BEST
    files = {file: _step_of(file) for file in there}
    for file, step in files.items():
        if step == which:
            return file
    steps = steps_in(workdir / CHECKPOINTS)
    if which.isdecimal() and int(which) in steps:
        return workdir / CHECKPOINTS / str(int(which))
    saved = sorted({*map(str, steps), *files.values()} - {""}, key=int, reverse=True)
    best = [_BEST] if workdir / BEST in files else []
    has = f"it has {listed([*best, *saved])}" if saved else "it has not saved any yet"
    raise UserError(f"{workdir}@{which}: the run has no such weights; {has}.")


def _step_of(file: Path) -> str:
    """Returns the step that a weights file states, "" where it states none."""
    metadata = read_tensors(file).metadata or {}
    return str(metadata.get("provenance", {}).get("step", ""))


def weights_digest(file: Path) -> str:
    """Returns the SHA-256 of a weights file; of a checkpoint, that of what is sealed with it.

    A checkpoint's seal has the checksums of its arrays.
    """
    return file_digest(sealed_in(file) if is_checkpoint(file) else file, "sha256")

"""A run's claim of its folder: one run at a time, of the same config, on the same data."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from vitswin_jax.core.atomic import replacing, sweep
from vitswin_jax.core.json import read_json
from vitswin_jax.core.types import UserError
from vitswin_jax.train.keep.lock import locked
from vitswin_jax.train.keep.same_data import check_same_data, read_recorded, write_accepted
from vitswin_jax.train.keep.workdir import (
    ACCEPTED,
    DATASET,
    LOCAL,
    LOGGED,
    MAY_CHANGE,
    PROFILE,
    REPORT,
    START,
    as_written_now,
    flatten,
)
from vitswin_jax.weights.runs import BEST, CHECKPOINTS, CONFIG, METRICS, WEIGHTS

OURS = (CONFIG, METRICS, START, ACCEPTED, LOCAL, LOGGED, WEIGHTS, BEST, REPORT)
"""Files that only the run of a folder writes."""
_SHOWN, _LENGTH = 8, 60  # differences of configs in a message, and characters of a value


@contextlib.contextmanager
def claimed(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    accept_changed_data: bool = False,
    labelled: bool = True,
    total_steps: int | None = None,
) -> Iterator[Path]:
    """Makes a folder the home of the run that `config` (plain data) describes; gives its path.

    An empty or absent folder gets a config.json; one that has it must be the same run's
    (`MAY_CHANGE` names what may differ), and is then resumed. `data` is the fingerprint of what the
    run trains on, which must be that of the newest checkpoint unless `accept_changed_data`;
    `labelled` if the model has a head of their classes; `total_steps` is the run's length. The
    first host holds the folder for all.

    Raises UserError for another run's folder, with every key that differs, for one that another
    process uses, for changed data, for a run that is longer already, and for a folder that cannot
    be written.
    """
    path = check_name(workdir)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied", str(path))
            if first:
                stack.enter_context(locked(path))
            _check_kinds(path)
            recorded = read_recorded(path)
        known = recorded is not None and recorded.data is not None
        config = plain(config)
        if (path / CONFIG).exists():
            _check_same_run(path / CONFIG, config, {*MAY_CHANGE, *([DATASET] if known else [])})
        if recorded is not None and total_steps is not None and recorded.step > total_steps:
            raise UserError(
                f"workdir {path}: the run has taken {recorded.step:,} steps, but this config "
                f"ends it after {total_steps:,}; raise optim.epochs, or use the weights of an "
                f"earlier step, {path}@STEP."
            )
        accepted = recorded is not None and check_same_data(
            path, recorded, data, accept=accept_changed_data, labelled=labelled
        )
        if first:
            if recorded is not None and accepted:
                write_accepted(path, recorded.step, data)
            sweep(path, OURS)
            with _writing(path), replacing(path / CONFIG) as temporary:
                temporary.write_text(
                    json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8"
                )
        yield path


def _check_kinds(workdir: Path) -> None:
    """Raises UserError for a folder in the place of a file of the run, and the other way round."""
    for path in (workdir / name for name in OURS):
        if path.is_dir():
            raise UserError(f"{path}: is a folder and must be a file of the run; remove it.")
    for path in (workdir / name for name in (CHECKPOINTS, PROFILE)):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file and must be a folder of the run; remove it.")


def check_name(workdir: str | os.PathLike[str]) -> Path:
    """Returns a workdir as a path; raises UserError for what cannot be the path of a folder."""
    text = os.fspath(workdir)
    if "://" in text:
        raise UserError(f"workdir {text}: must be a folder, gs://BUCKET/PATH or s3://BUCKET/PATH.")
    reason = "it is empty" if not text else "it has a NUL character" if "\0" in text else ""
    try:
        path = Path(text).expanduser()
        os.path.abspath(path).encode()  # noqa: PTH100, keeps links; TensorStore's paths are UTF-8
        reason = reason or _reason_against(path)
    except RuntimeError:
        reason = "there is no such home folder"
    except UnicodeError:
        reason = "its characters are not UTF-8"
    if reason:
        raise UserError(f"workdir {text}: cannot be written ({reason}); choose another --workdir.")
    return path


def _reason_against(path: Path) -> str:
    """Returns why a path cannot be one, such as a name that is too long; "" where it can."""
    try:
        path.exists()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as JSON has it: lists for tuples, texts for numbers it has not."""
    return {key: _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    small = not isinstance(value, int) or -(2**63) < value < 2**63
    return value if finite and small else str(value)


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"workdir {workdir}: cannot be written ({reason}).") from error


def _check_same_run(path: Path, config: Mapping[str, Any], may_change: Collection[str]) -> None:
    ours = flatten(config)
    try:
        theirs = plain(as_written_now(read_json(path, {"type": "object"}), ours))
    except UserError as error:
        text = str(error).rstrip(".")
        raise UserError(f"{text}; remove it to resume by the config of this command.") from error
    missing = object()
    differences = [
        f"{key} was {_shown(theirs, key)} and is {_shown(ours, key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in may_change and ours.get(key, missing) != theirs.get(key, missing)
    ]
    if len(differences) > _SHOWN:
        differences[_SHOWN:] = [f"{len(differences) - _SHOWN} keys more differ"]
    if differences:
        raise UserError(
            f"workdir {path.parent}: has a run of another config: {'; '.join(differences)}. Only "
            "the run's length and intervals may change. For other changes start a new run from "
            f"its weights: --init-from {path.parent} with another --workdir."
        )


def _shown(config: Mapping[str, Any], key: str) -> str:
    text = str(config.get(key, "absent"))
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."

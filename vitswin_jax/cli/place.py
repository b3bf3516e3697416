"""The folder that `vitswin train` writes a run to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vitswin_jax.core.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

RUNS = Path("runs")
"""The folder of runs that have a name and no --workdir."""


def choose_workdir(workdir: str | None, name: str | None, config: ConfigDict) -> str:
    """Returns the run's folder: the one given, or runs/NAME, by default runs/DATA-MODEL."""
    if workdir is not None and name is not None:
        raise UserError(f"--workdir={workdir} and --name={name} are two folders; give one of them.")
    if workdir is not None:
        return workdir
    if name is None:
        name = f"{_short_name(config.data.dataset)}-{config.model.name}"
    elif name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"--name={name} is the name of a folder of runs/; --workdir takes a path.")
    return str(RUNS / name)


def _short_name(dataset: str) -> str:
    """Returns a folder's name for a dataset.

    >>> _short_name("./flowers/"), _short_name("hf:user/beans"), _short_name("a-{000..127}.tar")
    ('flowers', 'beans', 'a')
    """
    last = re.split(r"[/\\:]", dataset.rstrip("/"))[-1]
    if last in (".", "..", "~"):
        last = Path(dataset).expanduser().resolve().name
    last = re.sub(r"(\.(csv|tar|tgz|gz|zst))+$", "", last)
    return re.sub(r"[^\w.]+", "-", re.sub(r"\{.*?\}|\*", "", last)).strip("-.") or "data"

"""Comparison of any number of runs: results, differences of the configs, curves."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.goodput import read_goodput
from vitswin_jax.core.types import UserError, counted
from vitswin_jax.report.curves import EPOCH, Series, line_of, many_runs
from vitswin_jax.report.page import percent, template
from vitswin_jax.report.runs import ACCURACY, LOSS, read_config, read_metrics
from vitswin_jax.weights.runs import CONFIG, METRICS, is_run

DONE, RUNNING, STOPPED = "done", "running", "stopped"
_FIRST = ("model.name", "init_from", "data.dataset", "optim.", "data.", "model.")
_DEEPEST = 8  # folders below each other; a link may lead back to where it lies


@dataclass(frozen=True)
class Summary:
    """One run's numbers; None for what its files do not say."""

    name: str
    """The path of its workdir below the folder that was searched."""
    state: str
    config: Mapping[str, Any]
    """Flat: keys joined by dots."""
    series: Mapping[str, Series]
    accuracy: float | None
    """The best test accuracy, in [0, 1]."""
    loss: float | None
    """The least test loss."""
    epochs: float | None
    images_per_second: float | None
    """The median over the rows of training."""
    goodput: float | None
    """The share of its life that went to training steps that were kept, in [0, 1]."""

    def numbers(self) -> dict[str, Any]:
        """Returns the numbers and the state as plain data."""
        names = ("name", "state", "accuracy", "loss", "epochs", "images_per_second", "goodput")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Overview:
    """The runs below a folder, and a line for each folder that is none."""

    runs: Sequence[Summary]
    others: Sequence[str]

    def differences(self) -> dict[str, list[Any]]:
        """Returns the keys of which the runs have different values, and each run's value.

        None stands for a key that a run lacks, such as a field of another model.
        """
        keys = dict.fromkeys(key for run in self.runs for key in run.config)
        values = {key: [run.config.get(key) for run in self.runs] for key in keys}
        differ = [key for key, row in values.items() if any(value != row[0] for value in row)]
        return {key: values[key] for key in sorted(differ, key=_place)}


def _place(key: str) -> int:
    """Returns the rank of a key in a table: keys that people change most often come first."""
    return next((i for i, start in enumerate(_FIRST) if key.startswith(start)), len(_FIRST))


def read_runs(folder: str | os.PathLike[str], trains: Callable[[Path], bool]) -> Overview:
    """Reads the runs at and below a folder, in the order of their names.

    `trains` returns whether a process trains in a workdir. A folder that is no run, or whose
    files are damaged, costs a line in `Overview.others`. Raises UserError where there is no run.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{folder}: no such folder; name a folder that contains runs, such as runs."
        )
    runs, others = [], []
    for path, holds in _search(root, _DEEPEST):
        if not holds:
            others.append(f"{path}: is no run: it has no {CONFIG} and no {METRICS}.")
            continue
        name = path.relative_to(root).as_posix() if path != root else root.resolve().name
        try:
            runs.append(summarize(path, name, trains=trains(path)))
        except UserError as error:
            others.append(str(error))
    if not runs:
        why = f" {others[0]}" if others else ""
        raise UserError(f"{folder}: this folder and those below it contain no run.{why}")
    return Overview(runs, others)


def _search(folder: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    """Gives the runs at and below a folder, and the folders that neither are nor hold one."""
    if _looks_like_a_run(folder):
        yield folder, True
        return
    found = []
    if depth:
        below = [each for each in _entries(folder) if not each.name.startswith(".")]
        found = [pair for each in below for pair in _search(each, depth - 1)]
    if any(holds for _, holds in found):
        yield from found
    else:
        yield folder, False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir())
    except OSError:
        return []


def _looks_like_a_run(folder: Path) -> bool:
    """Returns whether a folder is a workdir, or has only its config yet."""
    return is_run(folder) or (folder / CONFIG).is_file()


def summarize(workdir: Path, name: str, *, trains: bool) -> Summary:
    """Reads one run; raises UserError for files that are damaged or another program's."""
    config = flatten_dict(read_config(workdir), sep=".")
    if not {"data.dataset", "model.name"} <= config.keys():
        raise UserError(f"{workdir}: its {CONFIG} is missing or not that of a run.")
    series = read_metrics(workdir)
    goodput = read_goodput(workdir)
    state = STOPPED
    if trains:
        state = RUNNING
    elif _has_ended(config, series):
        state = DONE

    def over(key: str, function: Callable[[Sequence[float]], float]) -> float | None:
        return function(series[key][1]) if key in series else None

    return Summary(
        name=name,
        state=state,
        config=config,
        series=series,
        accuracy=over(ACCURACY, max),
        loss=over(LOSS, min),
        epochs=over(EPOCH, max),
        images_per_second=over("images_per_second", statistics.median),
        goodput=None if goodput is None else goodput.share,
    )


def _has_ended(config: Mapping[str, Any], series: Mapping[str, Series]) -> bool:
    """Returns whether a run was tested at the last step of its length."""
    if LOSS not in series or EPOCH not in series:
        return False
    tested, epochs = series[LOSS][0][-1], series[EPOCH]
    if not epochs[1][-1]:
        return False
    per_epoch = epochs[0][-1] / epochs[1][-1]
    total = config.get("optim.total_steps") or 0
    if examples := config.get("optim.examples"):
        total = round(examples / (config.get("data.batch_size") or 1))
    if count := config.get("optim.epochs"):
        total = round(count * per_epoch)
    return bool(total) and tested >= total


def rows_of(overview: Overview) -> list[tuple[str, list[str]]]:
    """Returns the columns of the table of runs: a title, and a text for each run.

    A number that no run states has no column.
    """
    texts: dict[str, Callable[[Summary], str | None]] = {
        "run": lambda run: run.name,
        "state": lambda run: run.state,
        "best accuracy": lambda run: _shown(run.accuracy, percent),
        "least loss": lambda run: _shown(run.loss, "{:.4f}".format),
        "epochs": lambda run: _shown(run.epochs, lambda value: f"{round(value, 2):g}"),
        "images/s": lambda run: _shown(run.images_per_second, "{:,.0f}".format),
        "goodput": lambda run: _shown(run.goodput, lambda share: f"{100 * share:.1f} %"),
    }
    columns = [(title, [text(run) for run in overview.runs]) for title, text in texts.items()]
    return [(title, [cell or "–" for cell in cells]) for title, cells in columns if any(cells)]


def _shown(value: float | None, text: Callable[[float], str]) -> str | None:
    return None if value is None or not math.isfinite(value) else text(value)


def write_overview(path: str | os.PathLike[str], overview: Overview, *, folder: str) -> Path:
    """Writes the page of the runs below a folder; returns `path`.

    Raises UserError where the file cannot be written.
    """
    columns = rows_of(overview)
    page = template("runs.html").render(
        title=f"Runs in {folder}",
        subtitle=counted(len(overview.runs), "run"),
        titles=[title for title, _ in columns],
        rows=list(zip(*(cells for _, cells in columns), strict=True)),
        lines=[line_of(i) for i in range(len(overview.runs))],
        names=[run.name for run in overview.runs],
        differences=overview.differences().items(),
        curves=many_runs([run.series for run in overview.runs]),
        others=overview.others,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)

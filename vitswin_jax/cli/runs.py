"""`vitswin runs`: compares the runs below a folder, as a table and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitswin_jax.cli.table import format_table
from vitswin_jax.core.store import is_url
from vitswin_jax.core.terminal import say, say_json
from vitswin_jax.core.types import listed

if TYPE_CHECKING:
    from vitswin_jax.report.overview import Overview

PAGE = "runs.html"
_SHOWN = 6  # keys that differ, in the line of a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the subcommand's arguments."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", default="runs",
        help="Compare the runs at and below this folder (default: runs/)."
    )  # fmt: skip
    add("--page", metavar="FILE", help=f"Write the page to FILE (default: FOLDER/{PAGE}).")
    add("--json", action="store_true", help="Print the comparison as one JSON object, and "
        "write a page only with --page.")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Prints the runs below a folder and writes their page."""
    from vitswin_jax.report.overview import read_runs, write_overview
    from vitswin_jax.weights.stored import local_numbers, send_page

    folder = local_numbers(args.folder)
    overview = read_runs(folder, _trains)
    page = args.page
    if page is None and not args.json:
        page = str(Path(folder).expanduser() / PAGE)
    if page is not None:
        write_overview(page, overview, folder=args.folder)
    if args.page is None and page is not None and is_url(args.folder):
        page = send_page(args.folder, Path(page))
    if args.json:
        differences = overview.differences()
        rows = [
            run.numbers() | {"differs": {key: values[i] for key, values in differences.items()}}
            for i, run in enumerate(overview.runs)
        ]
        say_json({"runs": rows, "left_out": list(overview.others)})
        return 0
    say(*_table(overview), *_left_out(overview), "", f"page: {page}")
    return 0


def _table(overview: Overview) -> list[str]:
    from vitswin_jax.report.overview import rows_of

    columns = rows_of(overview)
    differences = overview.differences()
    differs = [
        listed((f"{key}={values[i]}" for key, values in differences.items()), most=_SHOWN)
        for i in range(len(overview.runs))
    ]
    columns += [("differs in", differs)] if differences else []
    align = "".join("<" if title in ("run", "state", "differs in") else ">" for title, _ in columns)
    titles = [title for title, _ in columns]
    return format_table([titles, *zip(*(cells for _, cells in columns), strict=True)], align=align)


def _left_out(overview: Overview) -> list[str]:
    return ["", *(f"left out: {line}" for line in overview.others)] if overview.others else []


def _trains(workdir: Path) -> bool:
    """Returns whether a process trains in a workdir; only one that has a lock's file is asked."""
    from vitswin_jax.train.keep.lock import LOCK, MARKER, is_held
    from vitswin_jax.weights.stored import trains_there

    if (trains := trains_there(workdir)) is not None:
        return trains
    if (workdir / MARKER).exists():
        return True
    lock = workdir / LOCK
    try:
        return lock.is_file() and lock.stat().st_size > 0 and is_held(workdir)
    except OSError:  # a folder that cannot be written
        return False

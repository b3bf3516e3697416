"""A table of paths and labels, a CSV file, with one label an image or several."""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import (
    FileSource,
    is_file,
    is_inside,
    is_remote,
    join,
    read_text,
)
from vitswin_jax.data.sources.labels import listed, number_classes, parse_label
from vitswin_jax.data.sources.patterns import by_split, expand
from vitswin_jax.data.sources.splits import ALL, Dataset, dataset_of

PATH, LABEL, SPLIT = "path", "label", "split"


class Row(NamedTuple):
    """An image of a table: its path as written there, its classes, its split, and its line."""

    path: str
    classes: tuple[str, ...]
    split: str
    line: int


def open_table(pattern: str, *, outside_files: bool = False) -> Dataset:
    """Returns a table as a dataset; its classes are those that occur in it, sorted.

    The columns `path`, absolute or relative to the table, and `label` are needed, `split` may
    be there, and others are passed over. Several labels of an image stand in one field,
    "cat;indoors": one such field makes the whole dataset multi_label. Several tables at once,
    "{train,val}.csv", are splits by their names; one without splits is undivided. With
    `outside_files` a table may name files outside of its folder, and those of a store.

    Raises UserError that names the lines that are wrong, images that are not there, images
    with two rows, images outside, and classes that only other splits than "train" have.
    """
    files = by_split(expand(pattern), pattern)
    folders = {path.rpartition("/")[0] for paths in files.values() for path in paths}
    if len(folders) > 1:
        raise UserError(f"{pattern}: tables of one dataset must be in one folder.")
    root = folders.pop() or "."
    rows: list[Row] = []
    for split, paths in files.items():
        for path in paths:
            found = list(_read(path, split))
            if not outside_files:
                _check_inside(path, root, found)
            rows += found
    if not rows:
        raise UserError(
            f"{pattern}: has no rows; after the line {PATH},{LABEL} it needs a line per image."
        )
    _check_paths(pattern, root, rows)
    names, numbers = number_classes((c for row in rows for c in row.classes), None, pattern)
    multi_label = any(len(row.classes) > 1 for row in rows)
    splits: dict[str, list] = {}
    for row in rows:
        classes = tuple(sorted(numbers[name] for name in row.classes))
        splits.setdefault(row.split, []).append((row.path, classes if multi_label else classes[0]))
    sources = {
        split: FileSource(root, images, names, f"{pattern}:{split}", multi_label=multi_label)
        for split, images in splits.items()
    }
    return dataset_of(pattern, sources)


def _read(table: str, split: str) -> Iterator[Row]:
    """Gives a table's rows; `split` is that of the table where it has no such column."""
    reader = csv.DictReader(io.StringIO(read_text(table, file_names=True), newline=""), strict=True)
    columns = reader.fieldnames or []
    if missing := [column for column in (PATH, LABEL) if column not in columns]:
        raise UserError(
            f"{table}: its first line must name the columns {PATH} and {LABEL}, and {SPLIT} if "
            f"any; it lacks {', '.join(missing)} and has {', '.join(columns) or 'nothing'}."
        )
    if SPLIT in columns and split != ALL:
        raise UserError(
            f"{table}: states its split twice, by its name and by the column {SPLIT}; remove one."
        )
    wrong = []
    try:
        for row in reader:
            path, classes = row[PATH], parse_label(row[LABEL] or "")
            part = row[SPLIT] if SPLIT in columns else split
            if not _is_utf_8(f"{row[LABEL]}{part}"):
                raise UserError(f"{table}: is not UTF-8 text: line {reader.line_num}.")
            if not path or not classes or not part or None in row:
                wrong.append(str(reader.line_num))
            else:
                yield Row(path.replace("\\", "/"), classes, part, reader.line_num)
    except csv.Error as error:
        raise UserError(f"{table}: is not CSV after line {reader.line_num}: {error}.") from error
    if wrong:
        raise UserError(
            f"{table}: every line needs as many fields as the first line, and values for "
            f"{', '.join(c for c in (PATH, LABEL, SPLIT) if c in columns)}; wrong are line(s) "
            f"{listed(wrong)}."
        )


def _is_utf_8(text: str) -> bool:
    """Returns whether a text was UTF-8; names of files need not be."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _check_inside(table: str, root: str, rows: list[Row]) -> None:
    """Raises UserError for a table that names a file outside of its folder."""
    outside = [row for row in rows if not is_inside(root, row.path)]
    if outside:
        more = f" (and {len(outside) - 1:,} more)" if outside[1:] else ""
        raise UserError(
            f"{table}: line {outside[0].line} names {outside[0].path}{more}, which is outside of "
            "the table's folder; set config.data.outside_files=True (evaluate: "
            "--outside-files) to read such files."
        )


def _check_paths(pattern: str, root: str, rows: list[Row]) -> None:
    """Raises where an image has two rows or, on this machine, is not there."""
    count = collections.Counter(row.path for row in rows)
    if twice := [path for path, times in count.items() if times > 1]:
        raise UserError(
            f"{pattern}: an image must have one row, with several labels written as 'a;b'; "
            f"several rows have {listed(twice)}."
        )
    paths = [join(root, path) for path in count]
    if missing := [path for path in paths if not is_remote(path) and not is_file(path)]:
        if unreadable := [path for path in missing if not _is_utf_8(path)]:
            raise UserError(f"{pattern}: is not UTF-8 text: {listed(unreadable)} is not there.")
        raise UserError(f"{pattern}: {len(missing):,} image(s) are not there: {listed(missing)}.")

"""Names for several files at once, "shards/{train,val}-{000..127}.tar", and whose split each is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from vitswin_jax.data.files import is_file, matching
from vitswin_jax.data.labels import listed
from vitswin_jax.data.splits import ALL, HELD_OUT, TRAIN
from vitswin_jax.types import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """Gives what a shell makes of braces: {a,b} is a and b, {08..10} is 08, 09 and 10."""
    found = _BRACES.search(pattern)  # the innermost of the first, so braces may nest
    if not found:
        yield pattern
        return
    counted = _RANGE.fullmatch(found[1])
    if counted:
        first, last = counted.groups()
        choices = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    seen = set()
    for choice in choices:
        for name in expand_braces(pattern[: found.start()] + choice + pattern[found.end() :]):
            if name not in seen:
                seen.add(name)
                yield name


def expand(pattern: str) -> list[str]:
    """Returns the files that a pattern with braces, *, ? or [...] names, in the order written.

    Raises UserError that lists every one that is not there.
    """
    files, missing = [], []
    for name in expand_braces(pattern):
        found = matching(name) if re.search(r"[*?\[]", name) else [name] * is_file(name)
        files += [path for path in found if path not in files]
        missing += [] if found else [name]
    if missing:
        raise UserError(f"{pattern}: no such file(s): {listed(missing)}.")
    return files


def by_split(paths: Sequence[str], dataset: str) -> Mapping[str, list[str]]:
    """Returns the files of each split, by the last word of their names that is no number.

    "imagenet-train-0001.tar" is of "train"; where no file's name ends with that of a split, all
    are of ALL. Raises UserError where only some do.
    """
    groups: dict[str, list[str]] = {}
    for path in paths:
        stem = path.rpartition("/")[2].partition(".")[0]
        words = [word for word in re.split(r"[-_ ]", stem) if not word.isdecimal()]
        name = words[-1].rstrip("0123456789") if words else ""
        groups.setdefault(name if name in (TRAIN, *HELD_OUT) else ALL, []).append(path)
    if ALL in groups and len(groups) > 1:
        raise UserError(
            f"{dataset}: the name(s) {listed(groups[ALL])} do not say which split they are of; "
            f"they should end with {TRAIN}, {', '.join(HELD_OUT)}, and a number if any."
        )
    return groups

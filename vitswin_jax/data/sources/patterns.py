"""Patterns of several files, "shards/{train,val}-{000..127}.tar", and the split of each file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import is_file, matching
from vitswin_jax.data.sources.labels import listed
from vitswin_jax.data.sources.splits import ALL, HELD_OUT, SPELLINGS, TRAIN

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """Gives the expansions of braces as a shell does: {a,b} is a and b, {08..10} is 08, 09, 10.

    Braces may nest; one that is never closed is a letter like others.
    """
    start, depth, cuts = pattern.find("{"), 0, []
    for place in range(max(start, 0), len(pattern)):
        letter = pattern[place]
        depth += (letter == "{") - (letter == "}")
        if (letter == "," and depth == 1) or (letter == "{" and place == start) or not depth:
            cuts.append(place)
        if not depth:
            break
    if start < 0 or depth:
        yield pattern
        return
    choices = [pattern[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    if counted := _RANGE.fullmatch(choices[0]):
        first, last = counted.groups()
        choices = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    for choice in choices:
        for middle in expand_braces(choice):
            for end in expand_braces(pattern[cuts[-1] + 1 :]):
                yield pattern[:start] + middle + end


def expand(pattern: str) -> list[str]:
    """Returns the files that a pattern with braces, *, ? or [...] names, in the order written.

    What is the name of a file is that file, whatever is in it. Raises UserError that lists every
    one that is not there.
    """
    files, missing = [], []
    for name in [pattern] if is_file(pattern) else dict.fromkeys(expand_braces(pattern)):
        found = [name] * is_file(name)
        if not found and re.search(r"[*?\[]", name):
            found = matching(name)
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
        groups.setdefault(SPELLINGS.get(name.casefold(), ALL), []).append(path)
    if ALL in groups and len(groups) > 1:
        raise UserError(
            f"{dataset}: the name(s) {listed(groups[ALL])} do not show a split; a name must end "
            f"with {TRAIN}, {', '.join(HELD_OUT)}, optionally followed by a number."
        )
    return groups

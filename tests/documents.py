"""Reads the project's pages and runs what stands in their fences, as a reader would.

A page is run from its beginning to its end in one folder that stands in for the repository's root.
Of its fences these are run:

- `console`: lines that begin with `$ ` are commands, and the lines after one are what it prints;
- `bash`: a script;
- `python`: all of a page share their names; a comment such as `# float32 (8, 10)` after an
  assignment is the shape of what is assigned, and a `text` fence that follows is what it prints.

What is printed is compared line by line, blank ones left out: a line `...` is any number of lines,
`...` within a line any text, and in a fence with `numbers: any` a number is any number. A command
fails exactly where the last line that is shown begins with `error: `. After the language,
`needs: network` (`gpu`, `tpu`) marks what is not run, and nothing else may stand there. A comment
`<!-- given: NAME ... -->` names what the page takes for granted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitswin_jax.cli import main as vitswin
from vitswin_jax.core import signals

RUN = ("console", "bash", "python")
NEEDS = ("needs: network", "needs: gpu", "needs: tpu")
ANY_NUMBER = "numbers: any"
_FENCE = re.compile(r"(```+)(\w*) ?(.*)")
_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?")
_OWN_DEVICES = re.compile(r"--topology[ =]cpu:")  # which a process has from its start
_SHAPE = re.compile(r"^(\w+) = .*#.*?(\((?:\d+, ?)+\d*\))")


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page."""

    language: str
    mark: str
    text: str
    line: int  # of the page, from 1

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.language in RUN and self.mark not in NEEDS


@dataclass(frozen=True)
class Page:
    """A page's fences, headings and what it takes for granted."""

    path: Path
    fences: tuple[Fence, ...]
    headings: tuple[int, ...]  # their levels
    given: tuple[str, ...]


def read_page(path: Path) -> Page:
    """Reads a page; raises ValueError for a fence whose mark is unknown or that is left open."""
    fences, headings, given = [], [], []
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if fence := _FENCE.fullmatch(line):
            marker, language, mark = fence.groups()
            block = []
            for _, inside in lines:
                if inside == marker:
                    break
                block.append(inside)
            else:
                raise ValueError(f"{path.name}:{number}: the fence is left open")
            if mark and mark not in (*NEEDS, ANY_NUMBER):
                raise ValueError(f"{path.name}:{number}: the mark {mark!r} is unknown")
            fences.append(Fence(language, mark, "\n".join(block), number))
        elif heading := re.match(r"(#+) ", line):
            headings.append(len(heading[1]))
        elif names := re.fullmatch(r"<!-- given: (.*) -->", line):
            given += names[1].split()
    return Page(path, tuple(fences), tuple(headings), tuple(given))


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Gives each command of a console, its lines joined, with the lines that it prints."""
    command, printed, goes_on = None, [], False
    for line in text.splitlines():
        if line.startswith("$ ") or goes_on:
            if not goes_on:
                if command is not None:
                    yield command, printed
                command, printed = "", []
            command += line.removeprefix("$ ").removesuffix("\\")
            goes_on = line.endswith("\\")
        else:
            printed.append(line)
    if command is None:
        raise ValueError("a console has no line that begins with '$ '")
    yield command, printed


def printed_as(shown: list[str], printed: str, *, any_number: bool = False) -> bool:
    """Returns whether a page shows what was printed, by the rules of this module."""
    patterns = []
    for line in filter(str.strip, shown):
        if line.strip() == "...":
            patterns.append(r"(?:.*\n)*?")
            continue
        parts = line.split("...")
        if any_number:
            pattern = ".*".join(
                _NUMBER.pattern.join(map(_spaced, re.split(_NUMBER.pattern, part)[::3]))
                for part in parts
            )
        else:
            pattern = ".*".join(map(_spaced, parts))
        patterns.append(rf"\s*{pattern}\s*\n")
    lines = [line for line in printed.splitlines() if line.strip()]
    return re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in lines)) is not None


def _spaced(text: str) -> str:
    """Returns a pattern of a text in which a run of blanks is any run of blanks."""
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))


class Reader:
    """Somebody who follows a page, in a folder that stands in for the repository's root."""

    def __init__(self, root: Path, programs: Path) -> None:
        self._root = root
        self._programs = programs  # a folder with `python` and `vitswin`
        self._names: dict[str, Any] = {"__name__": "__page__"}

    def follow(self, page: Page) -> None:
        """Runs the page's fences; raises AssertionError that names the line that is not true."""
        for place, fence in enumerate(page.fences):
            if not fence.runs:
                continue
            origin = f"{page.path.name}:{fence.line}"
            after = page.fences[place + 1] if place + 1 < len(page.fences) else None
            if fence.language == "console":
                for command, shown in commands(fence.text):
                    self._command(command, shown, origin, any_number=fence.mark == ANY_NUMBER)
            elif fence.language == "bash":
                status, printed = self._shell(fence.text)
                assert status == 0, f"{origin}: status {status}\n{printed}"
            else:
                printed = self._python(fence.text, origin)
                if after is not None and after.language == "text":
                    told = after.text.splitlines()
                    same = printed_as(told, printed, any_number=after.mark == ANY_NUMBER)
                    assert same, f"{origin}: it prints\n{printed}"

    def _command(self, command: str, shown: list[str], origin: str, *, any_number: bool) -> None:
        status, printed = self.run(command)
        fails = bool(shown) and shown[-1].startswith("error: ")
        assert bool(status) == fails, f"{origin}: {command}: status {status}\n{printed}"
        if shown:
            same = printed_as(shown, printed, any_number=any_number)
            assert same, f"{origin}: {command} prints\n{printed}"

    def _python(self, text: str, origin: str) -> str:
        with _told() as stream:
            exec(compile(text, origin, "exec"), self._names)
        for line in text.splitlines():
            if shape := _SHAPE.match(line):
                name, promised = shape.groups()
                found = tuple(self._names[name].shape)
                assert found == eval(promised), f"{origin}: {name} has the shape {found}"
        return stream.getvalue()

    def run(self, command: str) -> tuple[int, str]:
        """Runs a command, in this process where it is Python's; returns its status and output."""
        words = shlex.split(command, comments=True)
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"| #.*", "", command)
        plain = not set("|&;<>$`") & set(unquoted)
        if plain and words[0] == "vitswin" and not _OWN_DEVICES.search(command):
            return self._inside(vitswin, words[1:])
        if plain and words[0] == "python":
            return self._inside(_run_python, words[1:])
        return self._shell(command)

    def _inside(self, program: Any, arguments: list[str]) -> tuple[int, str]:
        with _told() as stream, _as_found(arguments):
            try:
                status = program(arguments)
            except SystemExit as end:
                status = end.code
                if isinstance(status, str):
                    print(status, file=sys.stderr)
        return (status or 0) if not isinstance(status, str) else 1, stream.getvalue()

    def _shell(self, script: str) -> tuple[int, str]:
        path = os.pathsep.join([str(self._programs), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
            cwd=self._root,
            env=os.environ | {"PATH": path},
        )
        return done.returncode, done.stdout


def _run_python(arguments: list[str]) -> int:
    """Runs `python FILE ...` or `python -m MODULE ...` in this process."""
    with warnings.catch_warnings():
        # As the interpreter does by default; ml_collections loads a config in a deprecated way.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    return 0


@contextlib.contextmanager
def _told() -> Iterator[io.StringIO]:
    """Gives all that is printed, on either stream, as a screen would show it."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


@contextlib.contextmanager
def _as_found(arguments: list[str]) -> Iterator[None]:
    """Gives a program its arguments and takes its traces away again: arguments, loggers."""
    log, argv = logging.getLogger("vitswin_jax"), sys.argv
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    root = logging.getLogger()
    others, root.handlers[:] = root.handlers[:], []  # so that the program makes its own
    sys.argv = list(arguments)
    end_at_signals, signals.end_at_signals = signals.end_at_signals, lambda advice="": None
    try:
        yield
    finally:
        sys.argv = argv
        signals.end_at_signals = end_at_signals
        root.handlers[:] = others
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)

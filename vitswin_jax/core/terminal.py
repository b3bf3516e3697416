"""The one door to terminals and logs: names that files have pass it and cannot act on a terminal.

A name of a file or a class, a tensor's or a key of someone's JSON may have escapes, line ends, or
marks that turn the writing round, and bytes that are no UTF-8. What passes here is shown escaped,
and what the stream has no letters for too. `tests/test_house.py` sees that there is no other door.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

_COLUMNS, _ROWS = 80, 20  # of a terminal that does not say
_NARROW = 40  # columns below which a bar has room for its share only


_SHOWN_AS: dict[str, str] = {}


def show_as(place: object, name: str) -> None:
    """Has lines name a place, such as a copy of what is in an object store, by another name."""
    _SHOWN_AS[str(place)] = name


def by_name(text: str) -> str:
    """Returns a text with the names of `show_as` in place of their places."""
    for place, name in _SHOWN_AS.items():
        text = text.replace(place, name)
    return text


def printable(text: object) -> str:
    r"""Returns a text as one line with escapes for what cannot be printed.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def say(*lines: object, stream: Any = None) -> None:
    """Prints lines, on standard output if no stream is given; above a bar where one is shown."""
    stream = sys.stdout if stream is None else stream
    _write("".join(f"{printable(by_name(str(line)))}\n" for line in lines), stream)


def say_error(error: object) -> None:
    """Prints the line of an error on standard error."""
    say(f"error: {error}", stream=sys.stderr)


def say_json(value: Any) -> None:
    """Prints a value as a line of JSON, which any terminal shows and any program reads back."""
    text = json.dumps(value, ensure_ascii=not _is_unicode(sys.stdout))
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _as_json(char) for char in text)
    _write(f"{text}\n", sys.stdout)


def _as_json(char: str) -> str:
    return json.dumps(char)[1:-1] if ord(char) > 0xFFFF else f"\\u{ord(char):04x}"


def _write(text: str, stream: Any) -> None:
    if not _is_unicode(stream):
        encoding = stream.encoding or "ascii"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    with _above_bars(stream):
        stream.write(text)
    stream.flush()


def _is_unicode(stream: Any) -> bool:
    """Returns whether a stream has all letters; one without an encoding keeps texts as they are."""
    encoding = getattr(stream, "encoding", None)
    return not encoding or encoding.lower().startswith("utf")


@contextlib.contextmanager
def _above_bars(stream: Any) -> Iterator[None]:
    """Takes the bars off a terminal, and puts them below what the block has printed."""
    if "tqdm" not in sys.modules:
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=stream):
        yield


def progress(
    total: int | None,
    *,
    unit: str,
    title: str = "",
    initial: int = 0,
    scale: bool = False,
    leave: bool = True,
    show: bool = True,
    stream: Any = None,
) -> Any:
    """Returns tqdm's bar, on standard error; nothing is shown where that is no terminal.

    A terminal may state no width, as those of editors and of `script` do, or a narrow one.
    """
    from tqdm import tqdm

    stream = sys.stderr if stream is None else stream
    narrow = None
    if _size(stream)[0] < _NARROW:
        narrow = "{n_fmt}" if total is None else "{percentage:3.0f}%"
    bar = tqdm(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=scale,
        desc=printable(title)[:40] or None,
        leave=leave,
        disable=None if show else True,
        file=stream,
        bar_format=narrow,
        ncols=_size(stream)[0],
        nrows=_ROWS,
    )
    bar.dynamic_ncols = _size  # its own takes 0 rows for none to be shown
    return bar


def _size(stream: Any) -> tuple[int, int]:
    columns = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        columns = os.get_terminal_size(stream.fileno()).columns
    return max(columns or _COLUMNS, len(" 100%")), _ROWS


def logger(name: str) -> logging.Logger:
    """Returns the logger of a module; whoever shows its records gets printable lines."""
    found = logging.getLogger(name)
    if _printed not in found.filters:
        found.addFilter(_printed)
    return found


def _printed(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(by_name(record.getMessage())), ()
    return True


class LogHandler(logging.Handler):
    """Prints log records, other libraries' too, as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        try:
            say(*self.format(record).splitlines(), stream=sys.stderr)
        except Exception:  # as logging's own handlers: a log line ends no program
            self.handleError(record)


class Parser(argparse.ArgumentParser):
    """Argparse's parser, whose messages pass this door."""

    def print_help(self, file: Any = None) -> None:
        """Prints the help."""
        say(*self.format_help().splitlines(), stream=file)

    def print_usage(self, file: Any = None) -> None:
        """Prints the usage."""
        say(*self.format_usage().splitlines(), stream=file)

    def error(self, message: str) -> NoReturn:
        """Prints the usage and what was wrong; ends with the status 2."""
        super().error(printable(message))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Prints a message, if there is one, on standard error; ends."""
        if message:
            say(*message.splitlines(), stream=sys.stderr)
        sys.exit(status)

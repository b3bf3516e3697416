"""The door to terminals and logs: nothing that passes acts on one, and every stream takes it."""

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import struct
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitswin_jax.core.terminal import (
    LogHandler,
    Parser,
    logger,
    printable,
    progress,
    say,
    say_error,
    say_json,
)

NAMES = [
    "a\nb", "a\rb", "a\tb", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\0b", "a\x7fb", "a\x9bb",
    "a\u202eb", "a\u2066b", "a\u200fb", "a\u2028b", "\ufeffa", "a\udcffb", "a\U000e0041b",
]  # fmt: skip
"""Names that act on a terminal, that turn what follows round, or that are no UTF-8."""

LETTERS = ["Mädchen", "猫", "Ω", "🙂", "naïve café"]
"""Names that are as good as any."""

ENCODINGS = ["ascii", "cp1252", "latin-1", "utf-8", "cp932"]


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


def shown(out):
    out.flush()
    return out.buffer.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_what_acts_is_escaped(name):
    assert printable(name).isprintable()
    assert printable(name).encode().decode("unicode_escape").encode("utf-8", "surrogatepass") == (
        name.encode("utf-8", "surrogatepass")
    )


@pytest.mark.parametrize("name", LETTERS)
def test_what_is_a_letter_stays(name):
    assert printable(name) == name
    out = stream("utf-8")
    say(name, stream=out)
    assert shown(out).decode() == f"{name}\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_each_line_is_one_line_on_every_stream(encoding):
    out = stream(encoding)
    say(*NAMES, *LETTERS, stream=out)
    lines = shown(out).decode(encoding).splitlines()
    assert len(lines) == len(NAMES) + len(LETTERS)
    assert all(line.isprintable() for line in lines)


@given(st.text(st.characters(), max_size=20), st.sampled_from(ENCODINGS))
def test_any_text_is_one_line_and_any_json_is_read_back(text, encoding):
    out = stream(encoding)
    say(text, stream=out)
    assert shown(out).count(b"\n") == 1
    before, sys.stdout = sys.stdout, stream(encoding)
    try:
        say_json({text: [text]})
        line = shown(sys.stdout).decode(encoding)
    finally:
        sys.stdout = before
    assert line[:-1].isprintable()
    assert json.loads(line) == {text: [text]}


def test_a_stream_without_an_encoding(capsys):
    out = io.StringIO()
    say("Mädchen", stream=out)
    assert out.getvalue() == "Mädchen\n"
    say_error("a\nb")
    assert capsys.readouterr() == ("", "error: a\\nb\n")


def test_log_records_are_printable_whoever_shows_them(caplog, capsys):
    log = logger("vitswin_jax.test_terminal")
    assert logger("vitswin_jax.test_terminal") is log
    assert len(log.filters) == 1
    handler = LogHandler()
    log.addHandler(handler)
    try:
        log.warning("%s: has 100%% of %d", "a\x1b[2J\nb", 3)
    finally:
        log.removeHandler(handler)
    assert caplog.messages == [r"a\x1b[2J\nb: has 100% of 3"]
    assert capsys.readouterr().err == r"a\x1b[2J\nb: has 100% of 3" + "\n"
    record = logging.LogRecord("other", logging.WARNING, "", 0, "two\nlines\x1b", (), None)
    handler.emit(record)  # another library's
    assert capsys.readouterr().err == "two\nlines\\x1b\n"


def test_a_parser_repeats_no_escapes(capsys):
    parser = Parser(prog="x", description="Ω")
    parser.add_argument("--n", type=int)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--n=\x1b[2J"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.isprintable()) == ("", False)
    assert all(line.isprintable() for line in err.splitlines())
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "Ω" in capsys.readouterr().out


def bar_on(rows, columns, total=30):
    """What a terminal of that size, as it states it, is sent while a bar goes to its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with (
        os.fdopen(theirs, "w") as out,
        progress(total, unit="img", title="name\x1b", stream=out) as bar,
    ):
        bar.update(15)
        bar.refresh()
        say("above", stream=out)
        bar.update(15)
    sent = b""
    with contextlib.suppress(OSError):  # which ends what a closed terminal was sent
        while chunk := os.read(ours, 1 << 16):
            sent += chunk
    os.close(ours)
    return sent.decode()


@pytest.mark.parametrize("size", [(0, 0), (24, 0), (0, 80), (24, 80), (2, 80), (1, 80), (24, 39)])
@pytest.mark.parametrize("env", [{}, {"COLUMNS": "0"}, {"COLUMNS": "x"}, {"TERM": "dumb"}])
def test_a_terminal_of_any_size_shows_progress(size, env, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    sent = bar_on(*size)
    assert "50%" in sent
    assert "100%" in sent
    assert "above\r\n" in sent
    assert "\x1b[2" not in sent
    assert "hidden" not in sent


@pytest.mark.parametrize("columns", [1, 2, 5, 20])
def test_a_narrow_terminal_shows_the_share(columns):
    assert "50%" in bar_on(24, columns)
    assert "30" in bar_on(24, columns, total=None)


def test_what_is_no_terminal_shows_no_bar():
    out = stream("ascii")
    with progress(3, unit="img", stream=out) as bar:
        bar.update(3)
    assert shown(out) == b""

"""Rows of numbers: what is one, and that nothing in a file stops its reader."""

import pytest

from vitswin_jax.core.rows import read_rows
from vitswin_jax.core.types import UserError

GOOD = b'{"step": 3, "train/loss": 0.5, "lr": null}'


def test_rows_come_back_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == ([], 0)
    path.write_bytes(GOOD + b"\n" + GOOD + b"\n" + GOOD[:20])
    row = {"step": 3, "train/loss": 0.5, "lr": None}
    assert read_rows(path) == ([(GOOD.decode(), row)] * 2, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"\0", b"\xff\xfe", b"[]", b"3", b"null", b'"x"', b"{}", b'{"step": "3"}', b'{"step": 1.5}',
        b'{"step": true}', b'{"step": -1}', b'{"step": 1e999}', b'{"step": 3, "a": "b"}',
        b'{"step": 3, "a": [1]}', b'{"step": 3, "a": NaN}', b'{"step": 3, "a": 1e999}',
        b"[" * 100_000, b'{"step": ' + b"1" * 5000 + b"}", b'{"step": 3, "a": ' + b"9" * 400 + b"}",
        GOOD + GOOD, GOOD[:-1],
    ],
    ids=range(21),
)  # fmt: skip
def test_what_is_no_row_is_counted(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([GOOD, line, b"", GOOD, b""]))
    lines, foreign = read_rows(path)
    assert [text for text, _ in lines] == [GOOD.decode()] * 2 and foreign == 1


def test_what_is_no_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be read \(Is a directory\)\.$"):
        read_rows(tmp_path)

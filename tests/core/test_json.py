"""JSON of other programs: read where it fits its schema, and else refused in one short line."""

import pytest

from vitswin_jax.core.json import parse_json, read_json
from vitswin_jax.core.types import UserError

SCHEMA = {
    "type": "object",
    "properties": {
        "depth": {"type": "integer", "minimum": 1, "maximum": 1000},
        "mean": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
        "name": {"type": ["string", "null"]},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["depth"],
}


def test_what_fits_is_returned_as_it_is(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"depth": 12, "mean": [0.5, 1, 0], "name": null, "other": {"x": []}}')
    assert read_json(path, SCHEMA) == {
        "depth": 12,
        "mean": [0.5, 1, 0],
        "name": None,
        "other": {"x": []},
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"depth": "12"}', 'depth is "12"; it must be an integer.'),
        ('{"depth": true}', "depth is true; it must be an integer."),
        ('{"depth": 12.0}', "depth is 12.0; it must be an integer."),
        ("{}", "its content has no 'depth'."),
        ("[]", "its content is []; it must be an object."),
        ('{"depth": 0}', "depth is 0; it must be at least 1."),
        ('{"depth": 1000000000}', "depth is 1000000000; it must be at most 1000."),
        ('{"depth": 1, "mean": [1, "x", 2]}', 'mean[1] is "x"; it must be a number.'),
        ('{"depth": 1, "mean": [1]}', "mean is [1]; it must be a list of at least 3."),
        ('{"depth": 1, "name": 3}', "name is 3; it must be a text or null."),
        ('{"depth": 1, "kind": "c"}', 'kind is "c"; it must be one of a, b.'),
        ('{"depth": NaN}', "is not valid JSON; it may be damaged or cut short."),
        ('{"depth": 1', "is not valid JSON; it may be damaged or cut short."),
        ("[" * 100_000, "is not valid JSON; it may be damaged or cut short."),
        ('{"depth": 1, "size": 1e999}', "is not valid JSON; it may be damaged or cut short."),
        (
            '{"depth": 1, "size": 99999999999999999999}',
            "is not valid JSON; it may be damaged or cut short.",
        ),
        ('{"depth": 1' + "0" * 5000 + "}", "is not valid JSON; it may be damaged or cut short."),
    ],
)
def test_what_does_not_fit_is_one_line(text, says):
    with pytest.raises(UserError) as raised:
        parse_json(text, SCHEMA, origin="beside/config.json")
    assert str(raised.value) == f"beside/config.json: {says}"


def test_lines_stay_short():
    for text in ('{"depth": "' + "x" * 10_000 + '"}', '{"mean": ["' + "\\n" * 999 + '"]}'):
        with pytest.raises(UserError) as raised:
            parse_json(text, SCHEMA, origin="x")
        assert len(str(raised.value)) < 160
        assert "\n" not in str(raised.value)


def test_what_is_longer_than_its_limit_is_not_parsed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"depth": 1}' + " " * 100)
    with pytest.raises(UserError, match="longer than 50 bytes"):
        read_json(path, SCHEMA, limit=50)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"depth": "\xff"}')
    with pytest.raises(UserError, match="is not valid JSON"):
        read_json(path, SCHEMA)
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "absent.json", SCHEMA)

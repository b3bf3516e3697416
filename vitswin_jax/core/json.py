"""Checked JSON: a file of another program is read once, bounded, and compared with a schema."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vitswin_jax.core.types import UserError

LIMIT = 16 << 20
"""Bytes of the largest JSON text that is parsed; an index of 10,000 tensors has 1 MB."""

_COMPARED = 100  # faults, of which the best is reported; a million would take half a minute
_SHOWN = 40  # characters of a value in a message


def read_json(path: Path, schema: Mapping[str, Any], *, limit: int = LIMIT) -> Any:
    """Returns the content of a JSON file that fits `schema` (JSON Schema, draft 2020-12).

    Raises UserError, in one line, for a file that is missing, longer than `limit` bytes, no JSON
    (NaN and infinities are not), with integers beyond 64 bits, nested too deeply, or that does not
    fit the schema.
    """
    try:
        with path.open("rb") as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_json(text, schema, origin=str(path), limit=limit)


def parse_json(
    text: bytes | str, schema: Mapping[str, Any], *, origin: str, limit: int = LIMIT
) -> Any:
    """Returns the content of a JSON text, as `read_json` does; errors name `origin`.

    >>> parse_json('{"depth": 12}', {"properties": {"depth": {"type": "integer"}}}, origin="x")
    {'depth': 12}
    """
    # Imported here, for data workers load this room and read no JSON.
    from jsonschema.exceptions import best_match

    if len(text) > limit:
        raise UserError(f"{origin}: is longer than {limit:,} bytes, the limit for JSON.")
    try:
        content = json.loads(
            text, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
        faults = _validator()(schema).iter_errors(content)
        error = best_match(itertools.islice(faults, _COMPARED))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: is not valid JSON; it may be damaged or cut short.") from error
    if error is None:
        return content
    place = error.json_path.removeprefix("$").removeprefix(".") or "its content"
    raise UserError(f"{origin}: {_shortened(place)} {_fault(error)}.")


@functools.cache
def _validator() -> Any:
    """Returns the class of validators to which 16.0 is no integer, as it is none to Python."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    kinds = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=kinds)


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _integer(text: str) -> int:
    if abs(value := int(text)) >> 63:
        raise ValueError(text)
    return value


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


def _fault(error: Any) -> str:
    """Returns the fault of a value and what would be right, in our words."""
    value, right = _shortened(json.dumps(error.instance)), error.validator_value
    if error.validator == "type":
        kinds = [right] if isinstance(right, str) else right
        return f"is {value}; it must be {' or '.join(_KINDS[kind] for kind in kinds)}"
    if error.validator == "required":
        missing = [key for key in right if key not in error.instance]
        return f"has no {', '.join(map(repr, missing))}"
    if error.validator in _BOUNDS:
        return f"is {value}; it must be {_BOUNDS[error.validator]} {right}"
    if error.validator == "enum":
        return f"is {value}; it must be one of {', '.join(map(str, right))}"
    return f"is {value}, which does not fit {error.validator} {_shortened(json.dumps(right))}"


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "minItems": "a list of at least",
    "maxItems": "a list of at most",
}
_KINDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."

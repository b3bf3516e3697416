"""A directory that TFDS prepared, opened after the JSON in it is checked."""

from __future__ import annotations

import os
from typing import Any

from vitswin_jax.core.json import parse_json
from vitswin_jax.core.types import UserError
from vitswin_jax.data.sources.files import is_file, read_file

_FEATURE = {
    "type": "object",
    "properties": {
        # TFDS imports the module that is named here.
        "pythonClassName": {"type": "string", "pattern": r"^tensorflow_datasets\.core\.features\."},
        "featuresDict": {
            "type": "object",
            "properties": {"features": {"type": "object", "additionalProperties": {"$ref": "#"}}},
        },
        "sequence": {"type": "object", "properties": {"feature": {"$ref": "#"}}},
        "dataset": {"type": "object", "properties": {"feature": {"$ref": "#"}}},
    },
}
_SCHEMAS: dict[str, Any] = {"dataset_info.json": {"type": "object"}, "features.json": _FEATURE}


def prepared_builder(directory: str | os.PathLike[str]) -> Any:
    """Returns TFDS's builder of a directory that it prepared.

    Raises UserError where the JSON in it is damaged, or names code that is not TFDS's own.
    """
    import tensorflow_datasets as tfds  # 0.4 s, and folders need none of it

    directory = os.fspath(directory)
    for name, schema in _SCHEMAS.items():
        path = f"{directory.rstrip('/')}/{name}"
        if is_file(path):
            parse_json(read_file(path), schema, origin=path)
    try:
        return tfds.builder_from_directory(directory)
    except (
        Exception
    ) as error:  # protobuf's, TFDS's and Python's own, on what fits no schema of ours
        raise UserError(
            f"{directory}: {' or '.join(_SCHEMAS)} does not describe a dataset that TFDS prepared; "
            "it may be damaged, or of another version. Prepare it again."
        ) from error

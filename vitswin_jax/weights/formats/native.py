"""Weights files of our own: safetensors with flat names, "/" between modules, and metadata.

The header of a native file has one string, called "vitswin_jax": JSON with the `version` of the
package that wrote it, the `metadata`, and checksums, CRC-32: `crc32` of each tensor's bytes, and
`checksum` of the JSON without itself. (With several strings, safetensors would put them in an order
that differs from run to run; so the same weights give the same bytes.) Any reader of safetensors
can open it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.json import parse_json
from vitswin_jax.core.types import UserError
from vitswin_jax.core.version import __version__
from vitswin_jax.weights.formats.tensors import wrong_checksum

KEY = "vitswin_jax"

_NUMBERS = {"type": "array", "items": {"type": "number"}, "maxItems": 1024}
TRAINING_SCHEMA: Mapping[str, Any] = {
    "provenance": {"type": "object"},
    "metrics": {"type": "object", "additionalProperties": {"type": "number"}},
    "train_class_counts": {"type": ["array", "null"], "items": {"type": "integer"}},
}
"""The facts about how weights came to be, which no other library's configuration has."""

_SCHEMA = {
    "type": "object",
    "required": ["metadata"],
    "additionalProperties": False,
    "dependentRequired": {"crc32": ["checksum"]},
    "properties": {
        "version": {"type": "string"},
        "crc32": {"type": "object", "additionalProperties": {"type": "integer"}},
        "checksum": {"type": "integer"},
        "metadata": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 255},
                "fields": {"type": "object"},
                "preprocess": {
                    "type": ["object", "null"],
                    "required": ["img_size"],
                    "properties": {
                        "img_size": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 1, "maximum": 16384},
                        },
                        "mean": _NUMBERS,
                        "std": _NUMBERS,
                        "crop_fraction": {"type": "number", "minimum": 0.05},
                        "interpolation": {"type": "string"},
                        "crop_mode": {"type": "string"},
                    },
                },
                "class_names": {"type": ["array", "null"], "items": {"type": "string"}},
                **TRAINING_SCHEMA,
                "pretrain": {"type": ["object", "null"]},
            },
        },
    },
}


@dataclass(frozen=True)
class Header:
    """The facts in the header of a native file."""

    metadata: Mapping[str, Any]
    checksums: Mapping[str, int]
    """CRC-32 of the bytes of each tensor; empty in files of versions that wrote none."""


def write_native(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, Any]
) -> None:
    """Writes named float32 tensors and JSON-able metadata, whole or not at all.

    Raises UserError where the file cannot be written, or the metadata holds NaN or an infinity, and
    ValueError, naming them all, for tensors that are not float32.
    """
    others = [f"{name} ({t.dtype})" for name, t in sorted(tensors.items()) if t.dtype != np.float32]
    if others:
        raise ValueError(f"native files hold float32 tensors; these are not: {', '.join(others)}")
    # The writer takes a tensor's memory as it lies, whatever its strides.
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    checksums = {name: zlib.crc32(tensor.data) for name, tensor in sorted(tensors.items())}
    content: dict[str, Any] = {"version": __version__, "metadata": metadata, "crc32": checksums}
    try:
        content["checksum"] = _checksum(content)
    except ValueError as error:
        raise UserError(
            f"cannot write {path}: its metadata contains NaN or an infinity, which JSON cannot."
        ) from error
    with replacing(path) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata={KEY: json.dumps(content)})
        except SafetensorError as error:  # its name for the file system's errors
            raise OSError(str(error)) from error


def read_header(path: Path, texts: Mapping[str, str]) -> Header | None:
    """Returns our metadata in the header of a safetensors file, or None if it has none.

    Raises UserError for metadata that is damaged, or of no kind that we write.
    """
    if KEY not in texts:
        return None
    content = parse_json(texts[KEY], _SCHEMA, origin=f"{path}: {KEY!r} in its header")
    checksum = content.pop("checksum", None)
    if checksum is not None and checksum != _checksum(content):
        raise wrong_checksum(path, "its metadata")
    return Header(content["metadata"], content.get("crc32", {}))


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, allow_nan=False).encode())

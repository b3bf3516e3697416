"""Weights files of our own: safetensors with flat names, "/" between modules, and metadata.

The header of a native file has one string, called "vitswin_jax": JSON with the `version` of the
package that wrote it and the `metadata`. (With several, safetensors would put them in an order that
differs from run to run; so the same weights give the same bytes.) Any reader of safetensors can
open it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from vitswin_jax.core.atomic import replacing
from vitswin_jax.core.types import UserError
from vitswin_jax.core.version import __version__

KEY = "vitswin_jax"


def write_native(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, Any]
) -> None:
    """Writes named float32 tensors and JSON-able metadata, whole or not at all.

    Raises UserError where the file cannot be written, and ValueError, naming them all, for tensors
    that are not float32.
    """
    others = [f"{name} ({t.dtype})" for name, t in sorted(tensors.items()) if t.dtype != np.float32]
    if others:
        raise ValueError(f"native files hold float32 tensors; these are not: {', '.join(others)}")
    header = {KEY: json.dumps({"version": __version__, "metadata": metadata})}
    # The writer takes a tensor's memory as it lies, whatever its strides.
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:  # its name for the file system's errors
            raise OSError(str(error)) from error


def read_native(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the tensors of a native file, by name, and its metadata.

    Raises UserError for a file that is missing, damaged, or no native file.
    """
    with _open(path) as file:
        metadata = native_metadata(path, file.metadata())
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_native_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the metadata of a native file; only its header is read. Raises as `read_native`."""
    with _open(path) as file:
        return native_metadata(path, file.metadata())


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[safe_open]:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read as a safetensors file ({error}); "
            "it may be damaged, or cut short by an interrupted copy."
        ) from error


def native_metadata(
    path: str | os.PathLike[str], header: Mapping[str, str] | None
) -> dict[str, Any]:
    """Returns the metadata in a file's header; raises UserError where it has none of ours."""
    if not header or KEY not in header:
        found = ", ".join(f"{key}={value[:40]!r}" for key, value in sorted((header or {}).items()))
        raise UserError(
            f"{path}: written by another program: its header has {found or 'nothing'}, no {KEY!r}."
        )
    try:
        metadata = json.loads(header[KEY])["metadata"]
        if isinstance(metadata, dict):
            return metadata
    except (json.JSONDecodeError, TypeError, KeyError):
        pass
    raise UserError(f"{path}: what its header has as {KEY!r} is no JSON object with 'metadata'.")

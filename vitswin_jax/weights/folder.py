"""A model as a folder that timm or transformers loads as it is: weights and configuration."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitswin_jax.core.atomic import replacing, writing
from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.weights.hub import CONFIG
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.runs import WEIGHTS
from vitswin_jax.weights.sources import (
    timm_config,
    timm_folder,
    transformers_config,
    transformers_folder,
)
from vitswin_jax.weights.sources.config import OWN, Stated
from vitswin_jax.weights.sources.facts import Facts
from vitswin_jax.weights.sources.source import Source
from vitswin_jax.weights.write import computes_otherwise, write_file

_LIBRARIES = {
    "timm": (timm_folder, timm_config),
    "huggingface": (transformers_folder, transformers_config),
}
"""Format -> who writes and who reads its configuration."""


def is_folder(path: Path, format: str) -> bool:
    """Returns whether a format is written to a path as a folder: it is one, or has no suffix.

    Raises UserError where a file is in the way.
    """
    if format not in _LIBRARIES or (path.suffix and not path.is_dir()):
        return False
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{path}: is a file, and {format} without a suffix is a folder; give another name, or "
            "one that ends in .safetensors."
        )
    return True


def write_folder(
    path: Path,
    arrays: Mapping[str, Any],
    source: Source,
    metadata: Metadata,
    preprocess: Preprocess,
) -> dict[str, Any]:
    """Writes weights and configurations; returns the fields that the library computes otherwise.

    A new folder is written whole or not at all, in one that exists each file is. Raises UserError
    where it cannot be written, and for a model that no configuration describes.
    """
    writer, reader = _LIBRARIES[source.format]
    files = writer.config_files(source, metadata, preprocess, origin=str(path))
    config = json.loads(json.dumps(files[CONFIG]))
    stated = Stated(str(path), **reader.stated(config, origin=str(path)))
    numerics = Facts(stated.variant, {}, stated).numerics(source)
    differing = computes_otherwise(numerics, metadata.fields)
    if facts := metadata.facts_of_training(same_function=not differing):
        files[CONFIG][OWN] = facts
    try:
        texts = {
            name: json.dumps(content, indent=2, allow_nan=False) + "\n"
            for name, content in files.items()
        }
    except ValueError as error:
        raise UserError(
            f"cannot write {path}: its metadata holds NaN or an infinity, which JSON has not."
        ) from error
    folder = path
    if not path.exists():
        folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            folder.mkdir(exist_ok=True)
            write_file(folder / WEIGHTS, arrays, source)
            for name, text in texts.items():
                with replacing(folder / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            if folder != path:
                folder.rename(path)
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(path))) from error
    finally:
        if folder != path:
            shutil.rmtree(folder, ignore_errors=True)
    return differing

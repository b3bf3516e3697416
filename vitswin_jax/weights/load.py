"""Parts of a weights file: the model with its variables, the metadata, or the preprocessing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float32, UInt8

from vitswin_jax.core.types import UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.masked import MaskedModel
from vitswin_jax.models.registry import create_model, resolve_name
from vitswin_jax.models.tags import tags_of
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.open import open_own, open_pretrained
from vitswin_jax.weights.sources.preprocess import default_preprocess

_FILES = (".npz", ".pth", ".pt", ".bin", ".safetensors", ".json")  # ends of no tags


def load_pretrained(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    mesh: Mesh | None = None,
    param_dtype: DTypeLike = "float32",
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (model, variables) of a weights file.

    Arguments and errors are those of `open_pretrained`: `num_classes`, `img_size` and other fields
    of the model are keywords, and `dtype` is of what it computes in. Parameters are `param_dtype`,
    "float32", "bfloat16" or "float16". With a `mesh` (`train.sharding.create_mesh`) they lie on it
    divided, and no host needs memory for a whole model.
    """
    opened = open_pretrained(path, name, **fields)
    return opened.model, opened.variables_for(opened.model, mesh=mesh, param_dtype=param_dtype)


def load_pretraining(
    path: str | os.PathLike[str], name: str | None = None, **fields: Any
) -> tuple[MaskedModel, dict[str, Any]]:
    """Returns (model, variables) of a file that has the decoder of its pre-training too.

    `name` and `fields` are the encoder's, as in `load_pretrained`, which returns the encoder only.
    Raises UserError for a file without a decoder, and as `open_pretrained` does.
    """
    opened = open_pretrained(path, name, **fields)
    model = opened.pretraining_model()
    return model, opened.variables_for(model)


def load_metadata(path: str | os.PathLike[str], name: str | None = None, **fields: Any) -> Metadata:
    """Returns the metadata of a weights file, or of a run's, as the file states it.

    `name` and `fields` supply what it does not show, as in `load_pretrained`; no tensor is read.
    """
    return open_own(path, name, **fields).metadata


def make_preprocess(
    path_or_name: str | os.PathLike[str],
    name: str | None = None,
) -> Callable[..., Float32[np.ndarray, "b H W c"]]:
    """Returns a function from uint8 images to the input of a model, by its file or its name.

    It takes one image (h, w, 3) in [0, 255], or a sequence of them in any sizes, and returns a
    float32 batch. With a file, `name` supplies what it does not show, as in `load_pretrained`.
    """
    path = Path(path_or_name)
    if path.exists() or not _names_a_model(str(path_or_name)):
        preprocess = open_own(path_or_name, name).preprocess
    else:
        preprocess = default_preprocess(create_model(str(path_or_name)), str(path_or_name))
    return functools.partial(_preprocess_images, preprocess)


def _names_a_model(text: str) -> bool:
    """Returns whether a text that is no file is meant as a model's name, if misspelt."""
    base, dot, _ = text.partition(".")
    tagged = tags_of(base) and Path(text).suffix not in _FILES
    if not set("/@") & set(text) and (tagged or not dot):
        return True
    try:
        return bool(resolve_name(text))
    except UserError:
        return False


def _preprocess_images(
    preprocess: Preprocess,
    images: UInt8[np.ndarray, "*b h w c"] | Sequence[UInt8[np.ndarray, "_ _ _"]],
) -> Float32[np.ndarray, "n H W c"]:
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = [images]
    return np.stack([preprocess(image) for image in images])

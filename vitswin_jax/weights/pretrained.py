"""Weights with what is needed to use them: where files meet the models."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float32, UInt8

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.data.augment.transforms import Preprocess
from vitswin_jax.models.masked import MaskedModel
from vitswin_jax.models.pretraining import describe_method, method_of
from vitswin_jax.models.registry import create_model, family_of, resolve_name
from vitswin_jax.nn.blocks import stack_blocks, unstack_blocks
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights import write
from vitswin_jax.weights.adapt import check_parameters
from vitswin_jax.weights.formats import native as files
from vitswin_jax.weights.formats.tensors import Tensor
from vitswin_jax.weights.locate import WEIGHTS
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.open import Weights, divide_encoder, open_weights
from vitswin_jax.weights.shapes import parameter_shapes, window_buffers
from vitswin_jax.weights.sources.preprocess import timm_preprocess
from vitswin_jax.weights.sources.source import IMAGENET

log = logging.getLogger(__name__)

_EXECUTION = ("attn_impl", "remat", "scan")  # how a run computed, not what: never stored
# The Swin families: ImageNet's statistics, 224 of 256 pixels (the official data/build.py).
_MICROSOFT = IMAGENET | {"crop_fraction": 0.875}


def load_pretrained(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (model, variables) of a weights file of any source, or of a run's workdir.

    `path` is a file or a folder, or else a name: of the table of published weights
    (`augreg/B_16-...`) or of the Hugging Face hub (`hf-hub:org/name[@revision]`), downloaded once.
    What the file shows wins, in sizes and in numeric details, so that the model gives the
    original's numbers; `name` supplies only what it does not show, and explicit fields win over
    both. None means the file's. Another `num_classes` gives a fresh (zero) head, unless the source
    maps its classes; another `img_size` or `window_size` resizes tables by the source's own method.
    What was adapted, and what of the file is not used, is logged. Variables are in loop layout, or
    stacked with `scan=True`. Raises UserError for a file that cannot be read, for what it leaves
    open, with the candidates, and one that lists every key that is missing, unknown or of another
    shape.
    """
    asked = {"num_classes": num_classes, "img_size": img_size}
    asked = {field: value for field, value in asked.items() if value is not None} | fields
    if asked.get("window_size", 0) is None:
        del asked["window_size"]
    weights = open_weights(path, name, **asked)
    model = weights.model(**asked)
    return model, _variables_for(model, weights)


def load_pretraining(
    path: str | os.PathLike[str], name: str | None = None, **fields: Any
) -> tuple[MaskedModel, dict[str, Any]]:
    """Returns (model, variables) of a file that has the decoder of its pre-training too.

    `name` and `fields` are the encoder's, as in `load_pretrained`, which returns it alone. Raises
    UserError for a file without a decoder, and for what `load_pretrained` does.
    """
    weights = open_weights(path, name, **fields)
    model = weights.pretraining_model(**fields)
    return model, _variables_for(model, weights)


def _variables_for(model: nn.Module | MaskedModel, weights: Weights) -> dict[str, Any]:
    """Returns a file's variables on the device, in the model's layout; logs what was adapted."""
    tensors, notes = weights.adapted_to(model, origin=str(weights.file))
    for note in notes:
        log.info("%s: %s", weights.file, note)
    # jnp.asarray would compile a program for each shape. An alias would be of the file's memory.
    params = read_parameters(tensors, functools.partial(jax.device_put, may_alias=False))
    return {"params": stack_blocks(params) if model.scan else params}


def read_parameters(
    tensors: Mapping[str, Tensor], place: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
    """Returns a tree of parameters of flat unread ones: what `place` makes of float32 arrays."""

    def read(tensor: Tensor) -> Any:
        array = np.ascontiguousarray(tensor.read(), np.float32)
        return place(array.reshape(tensor.shape))

    with ThreadPoolExecutor(max_workers=4) as pool:  # reading and transposing leave the GIL
        leaves = pool.map(read, tensors.values())
        return unflatten_dict(dict(zip(tensors, leaves, strict=True)), sep="/")


def save_pretrained(
    path: str | os.PathLike[str],
    model: nn.Module,
    variables: Mapping[str, Params],
    *,
    format: str = "native",
    metadata: Metadata | Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model and its variables as one file, whole or not at all; returns its path.

    `format` is native, or whose code shall read it: google, timm, microsoft, huggingface. A native
    file has the metadata, and a folder as `path` gets a `model.safetensors`. `metadata` has what
    `Metadata` has, but for the fields, which are the model's; that of a file of the same format
    (`load_metadata`) gives its prefix and dtype back. Raises UserError where the file cannot be
    written, the format is unknown or cannot have the model, or model, variables and metadata do not
    fit each other.
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    encoder = model.encoder if isinstance(model, MaskedModel) else model
    metadata = _describe(encoder, metadata, origin=str(path))
    if encoder is not model:
        metadata = dataclasses.replace(metadata, pretrain=describe_method(model))
    params = unstack_blocks(variables["params"])
    tensors = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep="/").items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_parameters(found, parameter_shapes(model), origin=f"what is to be saved as {path}")
    if format == "native":
        files.write_native(path, tensors, metadata=metadata.as_json())
    else:
        _write_theirs(path, model, tensors, format, metadata)
    return path


def _write_theirs(
    path: Path,
    model: nn.Module,
    tensors: Mapping[str, np.ndarray],
    format: str,
    metadata: Metadata,
) -> None:
    masked = isinstance(model, MaskedModel)
    encoder = model.encoder if masked else model
    source = write.choose_target(format, family_of(encoder), metadata.fields, origin=str(path))
    own, others = divide_encoder(tensors) if masked else (tensors, {})
    buffers = functools.partial(window_buffers, encoder)
    theirs = write.as_theirs(source, own, buffers, origin=str(path))
    if masked:
        method = method_of(model)
        decoder = write.choose_decoder(format, method, origin=str(path))
        theirs = {decoder.encoder_prefix + name: array for name, array in theirs.items()}
        theirs |= write.write_rules(others, decoder.rules, origin=str(path))
        if decoder.positions is not None:
            theirs[decoder.positions] = model.decoder_positions()
    origin = metadata.provenance if metadata.provenance.get("format") == format else {}
    dtype = jnp.dtype(origin.get("dtype", "float32"))
    arrays = {
        origin.get("prefix", source.prefix) + name: array.astype(dtype, copy=False)
        if array.dtype == np.float32
        else array
        for name, array in theirs.items()
    }
    write.write_file(path, arrays, source)
    if others := write.computes_otherwise(source, metadata.fields):
        log.warning("%s: %s's own code computes with %s", path, source.name, ", ".join(others))


def load_metadata(path: str | os.PathLike[str], name: str | None = None, **fields: Any) -> Metadata:
    """Returns what a weights file, or a run's, says of itself; its weights are not read.

    `name` and `fields` supply what it does not show, as in `load_pretrained`.
    """
    return open_weights(path, name, **fields).metadata


def make_preprocess(
    path_or_name: str | os.PathLike[str],
    name: str | None = None,
) -> Callable[..., Float32[np.ndarray, "b H W 3"]]:
    """Returns a function from uint8 images to the input of a model, by its file or its name.

    It takes one image (h, w, 3) in [0, 255], or a sequence of them in any sizes, and returns a
    float32 batch. Of a file, `name` supplies what it does not show, as in `load_pretrained`.
    """
    path = Path(path_or_name)
    if path.exists() or not _names_a_model(str(path_or_name)):
        metadata = load_metadata(path_or_name, name)
        preprocess = metadata.preprocess or default_preprocess(metadata.name, metadata.fields)
    else:
        preprocess = default_preprocess(str(path_or_name))
    return functools.partial(_preprocess_images, preprocess)


def _names_a_model(text: str) -> bool:
    """Returns whether a text that is no file is meant as a model's name, if misspelt."""
    if "/" not in text and "." not in text:
        return True
    try:
        return bool(resolve_name(text))
    except UserError:
        return False


def default_preprocess(name: str, fields: Mapping[str, Any] | None = None) -> Preprocess:
    """Returns how a model that is not from a file, or from one that does not say, takes images."""
    model = create_model(name, **(fields or {}))
    images = _MICROSOFT
    if family_of(model) == "vit":
        images = timm_preprocess(_model_fields(model), name)
    return Preprocess(img_size=pair(model.img_size), **images)


def _describe(
    model: nn.Module, metadata: Metadata | Mapping[str, Any] | None, *, origin: str
) -> Metadata:
    given = {} if metadata is None else metadata
    if isinstance(given, Metadata):
        given = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    described = {"name": family_of(model), **given, "fields": _model_fields(model)}
    metadata = Metadata.from_json(described, origin=origin)
    if metadata.class_names is not None and len(metadata.class_names) != model.num_classes:
        raise UserError(
            f"{origin}: {len(metadata.class_names)} class names were given for a model with "
            f"num_classes={model.num_classes}."
        )
    return metadata


def _model_fields(model: nn.Module) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(model)} - {"parent", "name", *_EXECUTION}
    fields = {name: getattr(model, name) for name in sorted(names)}
    return fields | {"dtype": jnp.dtype(model.dtype).name}


def _preprocess_images(
    preprocess: Preprocess,
    images: UInt8[np.ndarray, "*b h w 3"] | Sequence[UInt8[np.ndarray, "_ _ 3"]],
) -> Float32[np.ndarray, "n H W 3"]:
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = [images]
    return np.stack([preprocess(image) for image in images])

"""A model with its variables and metadata as files: one of ours, or those of another code."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.models.pretraining import describe_method, method_of
from vitswin_jax.models.registry import family_of
from vitswin_jax.models.unlabelled import UnlabelledModel, divide_encoder
from vitswin_jax.nn.scan import unstack_blocks
from vitswin_jax.weights import folder as folders
from vitswin_jax.weights import write
from vitswin_jax.weights.adapt import check_parameters
from vitswin_jax.weights.formats import native
from vitswin_jax.weights.metadata import Metadata, model_fields
from vitswin_jax.weights.shapes import parameter_shapes, window_buffers
from vitswin_jax.weights.sources.preprocess import default_preprocess


def write_model(
    path: Path,
    model: nn.Module,
    variables: Mapping[str, Params],
    *,
    format: str,
    metadata: Metadata,
) -> str:
    """Writes a model to a file or a folder, completely or not at all; see `save_pretrained`.

    `metadata` is what `describe` returns. Returns a line about what the other code computes in
    another way, "" where it computes the same. Raises UserError as `save_pretrained` does.
    """
    params = unstack_blocks(variables["params"])
    tensors = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep="/").items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_parameters(found, parameter_shapes(model), origin=f"what is to be saved as {path}")
    if format == "native":
        native.write_native(path, tensors, metadata=metadata.as_json())
        return ""
    return _write_theirs(path, model, tensors, format, metadata)


def _write_theirs(
    path: Path,
    model: nn.Module,
    tensors: Mapping[str, np.ndarray],
    format: str,
    metadata: Metadata,
) -> str:
    encoder = model.encoder if isinstance(model, UnlabelledModel) else model
    source = write.choose_target(format, family_of(encoder), metadata.fields, origin=str(path))
    own, others = (tensors, {}) if encoder is model else divide_encoder(tensors)
    buffers = functools.partial(window_buffers, encoder)
    theirs = write.as_theirs(source, own, buffers, origin=str(path))
    if isinstance(model, UnlabelledModel):
        decoder = write.choose_decoder(format, method_of(model), origin=str(path))
        theirs = {decoder.encoder_prefix + name: array for name, array in theirs.items()}
        theirs |= write.write_rules(others, decoder.rules, origin=str(path))
        if decoder.positions is not None:
            theirs[decoder.positions] = model.decoder_positions()
    origin = metadata.provenance if metadata.provenance.get("format") == format else {}
    dtype = jnp.dtype(origin.get("dtype", "float32"))
    folder = folders.is_folder(path, format)
    prefix = source.prefix if folder else origin.get("prefix", source.prefix)
    arrays = {
        prefix + name: array.astype(dtype, copy=False) if array.dtype == np.float32 else array
        for name, array in theirs.items()
    }
    if folder:
        preprocess = metadata.preprocess or default_preprocess(encoder, metadata.name)
        differing = folders.write_folder(path, arrays, source, metadata, preprocess)
    else:
        write.write_file(path, arrays, source)
        differing = write.computes_otherwise(source.numerics, metadata.fields)
    details = (f"{key}={x!r} (here {metadata.fields[key]!r})" for key, x in differing.items())
    return f"{source.name}'s own code computes with {', '.join(details)}" if differing else ""


def describe(
    model: nn.Module,
    metadata: Metadata | Mapping[str, Any] | None,
    *,
    origin: str = "the metadata",
) -> Metadata:
    """Returns the metadata of a native file of a model; its fields are the model's.

    Raises UserError, naming `origin`, where `metadata` does not fit the model.
    """
    if isinstance(model, UnlabelledModel):
        described = describe(model.encoder, metadata, origin=origin)
        return dataclasses.replace(described, pretrain=describe_method(model))
    given = {} if metadata is None else metadata
    if isinstance(given, Metadata):
        given = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    described = Metadata.from_json(
        {"name": family_of(model), **given, "fields": model_fields(model), "pretrain": None},
        origin=origin,
    )
    if (images := described.preprocess) is not None:
        images = images.fitted(images.img_size, model.in_chans)
        described = dataclasses.replace(described, preprocess=images)
    names = described.class_names
    if names is not None and len(names) != model.num_classes:
        raise UserError(
            f"{origin}: {len(names)} class names were given for a model with "
            f"num_classes={model.num_classes}."
        )
    return described

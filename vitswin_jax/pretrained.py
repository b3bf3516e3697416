"""Weights with what is needed to use them: where files meet the models.

Today's files are our own (`convert.files`); a source format is a reader that gives `_Checkpoint`s.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float32, UInt8

from vitswin_jax.convert import files
from vitswin_jax.data.transforms import Preprocess
from vitswin_jax.models.blocks import stack_blocks, unstack_blocks
from vitswin_jax.models.layers import pair
from vitswin_jax.models.registry import create_model, family_of
from vitswin_jax.types import Params, Shapes, UserError

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
"""What a run calls its weights: a workdir may stand wherever a weights file may."""

_EXECUTION = ("remat", "scan")  # how a run computed, not what: never stored
_HEADS = ("head", "head_dist")
# Swin and V2: ImageNet's statistics, 224 of 256 pixels, bicubic (the official data/build.py).
_MICROSOFT = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_fraction": 0.875}
# ViT: inputs in [-1, 1]; crop and kernel as timm evaluates AugReg's.
_GOOGLE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_fraction": 0.9}
_PREPROCESS = {"vit": _GOOGLE, "swin": _MICROSOFT, "swinv2": _MICROSOFT}  # where no file says


@dataclass(frozen=True)
class Metadata:
    """What a weights file says of itself."""

    name: str
    """The variant, or the family where the sizes are nobody's."""
    fields: Mapping[str, Any]
    """The model's fields, as `create_model` takes them."""
    preprocess: Preprocess | None = None
    """How images become the model's input."""
    class_names: tuple[str, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights are from: dataset, split, configuration, step, ..."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_class_counts: tuple[int, ...] | None = None
    """How many training examples each class had."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain data that `from_json` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, origin: str) -> Metadata:
        """Reads plain data; raises UserError, naming `origin`, for what does not fit."""
        known = {f.name for f in dataclasses.fields(cls)}
        wrong = [f"unknown {key!r}" for key in sorted(data.keys() - known)]
        wrong += [f"no {key!r}" for key in ("name", "fields") if key not in data]
        if wrong:
            raise UserError(f"{origin}: the metadata has {', '.join(wrong)}.")
        values = {key: _tuples(value) for key, value in data.items()}
        try:
            if isinstance(values.get("preprocess"), Mapping):
                values["preprocess"] = Preprocess(**values["preprocess"])
        except TypeError as error:
            raise UserError(
                f"{origin}: the metadata's preprocess does not fit: {error}."
            ) from error
        return cls(**values)


def load_pretrained(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **fields: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (model, variables) of a weights file or of a run's workdir.

    The file says what the model is; `name` only has to be of the same family. None means the
    file's; explicit fields win over it, and another `num_classes` gives a fresh (zero) head.
    Variables are in loop layout, or stacked with `scan=True`. What was adapted is logged. Raises
    UserError for a file that cannot be read, and one that lists every parameter that is missing,
    extra or of another shape.
    """
    file = weights_file(path)
    tensors, stored = files.read_native(file)
    metadata = Metadata.from_json(stored, origin=str(file))
    if name is not None and _family(name) != _family(metadata.name):
        raise UserError(f"{file}: holds {metadata.name}, which is no {_family(name)} like {name}.")
    if num_classes is not None:
        fields["num_classes"] = num_classes
    if img_size is not None:
        fields["img_size"] = img_size
    model = create_model(metadata.name, **{**metadata.fields, **fields})
    shapes = parameter_shapes(model)
    if model.num_classes != metadata.fields.get("num_classes", model.num_classes):
        tensors = _fresh_head(tensors, shapes, origin=str(file))
    _check_parameters(tensors, shapes, origin=str(file))
    params = unflatten_dict({key: jnp.asarray(tensor) for key, tensor in tensors.items()}, sep="/")
    return model, {"params": stack_blocks(params) if model.scan else params}


def save_pretrained(
    path: str | os.PathLike[str],
    model: nn.Module,
    variables: Mapping[str, Params],
    *,
    format: str = "native",
    metadata: Metadata | Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model and its variables as one file, whole or not at all; returns its path.

    A folder as `path` gets a `model.safetensors`. `metadata` has what `Metadata` has, but for the
    fields, which are the model's. Raises UserError where the file cannot be written, the format is
    unknown, or model, variables and metadata do not fit each other.
    """
    if format != "native":
        raise UserError(f"format={format!r} is unknown; it is native.")
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    metadata = _describe(model, metadata, origin=str(path))
    params = unstack_blocks(variables["params"])
    tensors = {key: np.asarray(leaf) for key, leaf in flatten_dict(params, sep="/").items()}
    _check_parameters(tensors, parameter_shapes(model), origin=f"what is to be saved as {path}")
    files.write_native(path, tensors, metadata=metadata.as_json())
    return path


def load_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Returns what a weights file, or a run's, says of itself; its weights are not read."""
    file = weights_file(path)
    return Metadata.from_json(files.read_native_metadata(file), origin=str(file))


def make_preprocess(
    path_or_name: str | os.PathLike[str],
) -> Callable[..., Float32[np.ndarray, "b H W 3"]]:
    """Returns a function from uint8 images to the input of a model, by its file or its name.

    It takes one image (h, w, 3) in [0, 255], or a sequence of them in any sizes, and returns a
    float32 batch.
    """
    path = Path(path_or_name)
    if path.exists() or path.suffix or path.parent != Path():
        metadata = load_metadata(path)
        preprocess = metadata.preprocess or default_preprocess(metadata.name, metadata.fields)
    else:
        preprocess = default_preprocess(str(path_or_name))
    return functools.partial(_preprocess_images, preprocess)


def default_preprocess(name: str, fields: Mapping[str, Any] | None = None) -> Preprocess:
    """Returns how a model that is not from a file, or from one that does not say, takes images."""
    model = create_model(name, **(fields or {}))
    return Preprocess(img_size=pair(model.img_size), **_PREPROCESS[family_of(model)])


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Returns the weights file that `path` names: itself, or a workdir's.

    Raises UserError where there is none.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.exists():
            raise UserError(
                f"{path}: no such file or folder; a weights file or a workdir is needed."
            )
        return path
    if not (path / WEIGHTS).exists():
        raise UserError(f"{path}: has no {WEIGHTS}; a run writes it into its workdir at its end.")
    return path / WEIGHTS


def parameter_shapes(model: nn.Module) -> Shapes:
    """Returns the flat names of a model's parameters, in loop layout, with their shapes."""
    height, width = pair(model.img_size)
    images = jax.ShapeDtypeStruct((1, height, width, model.in_chans), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(model.clone(scan=False).init, key, images)
    return {name: leaf.shape for name, leaf in flatten_dict(variables["params"], sep="/").items()}


def _check_parameters(tensors: Mapping[str, Any], shapes: Shapes, *, origin: str) -> None:
    wrong = []
    if missing := sorted(shapes.keys() - tensors.keys()):
        wrong.append(f"missing {', '.join(missing)}")
    if extra := sorted(tensors.keys() - shapes.keys()):
        wrong.append(f"not in the model {', '.join(extra)}")
    wrong += [
        f"{name} has shape {tensors[name].shape}, the model's {shapes[name]}"
        for name in sorted(shapes.keys() & tensors.keys())
        if tensors[name].shape != shapes[name]
    ]
    if wrong:
        raise UserError(f"{origin}: does not fit the model: {'; '.join(wrong)}.")


def _fresh_head(
    tensors: Mapping[str, np.ndarray], shapes: Shapes, *, origin: str
) -> dict[str, np.ndarray]:
    kept = {name: t for name, t in tensors.items() if name.split("/")[0] not in _HEADS}
    fresh = {name: shape for name, shape in shapes.items() if name.split("/")[0] in _HEADS}
    log.info("%s: the head is fresh (zero): %s", origin, ", ".join(sorted(fresh)) or "none")
    return kept | {name: np.zeros(shape, np.float32) for name, shape in fresh.items()}


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


def _family(name: str) -> str:
    return family_of(create_model(name))


def _tuples(value: Any) -> Any:
    """Returns JSON's lists as tuples, which a model's fields must be."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return value

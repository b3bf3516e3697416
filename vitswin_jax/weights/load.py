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
from vitswin_jax.models.registry import create_model, resolve_name
from vitswin_jax.models.tags import tags_of
from vitswin_jax.models.unlabelled import UnlabelledModel
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
    """Loads a model and its weights from a file of any source.

    `model.apply(variables, images, train=False)` then gives the outputs of the original, to the
    rounding of float32: float32 logits (batch, num_classes). `images` are float32
    (batch, height, width, channels), normalised by `make_preprocess(path)`.

    Args:
        path: a weights file (Google's `.npz`, Microsoft's `.pth`, `.safetensors` of timm or Hugging
            Face, and others), a run's workdir (`runs/x`, `runs/x@best`), or a published name
            (`vitswin models --sources` lists them), which is downloaded once.
        name: the variant (`model_names`), if the file does not show it.
        mesh: devices over which the parameters are divided (`train.sharding.create_mesh`), so that
            no host needs memory for a whole model. None: the default device has all of them.
        param_dtype: the dtype of the parameters: "float32", "bfloat16" or "float16".
        **fields: fields of the model (`create_model`) that replace those of the file.
            `num_classes`: another number gives a new head of zeros, 0 no head. `img_size`: pixels,
            int or (height, width); position tables are resized. `dtype`: of the computation.

    Returns:
        (model, variables): a Linen module, and {"params": ...} with its arrays.

    Raises:
        UserError: the file cannot be read; the file does not show a fact (with the candidates); an
            argument contradicts the tensors; or keys are missing, unknown or of another shape.

    >>> import jax
    >>> import vitswin_jax
    >>> fields = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    >>> model = vitswin_jax.create_model("vit", **fields)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
    >>> path = vitswin_jax.save_pretrained("small.safetensors", model, variables)
    >>> model, variables = vitswin_jax.load_pretrained(path, img_size=16)
    >>> model.apply(variables, jax.numpy.zeros((2, 16, 16, 3)), train=False).shape
    (2, 3)
    """
    opened = open_pretrained(path, name, **fields)
    return opened.model, opened.variables_for(opened.model, mesh=mesh, param_dtype=param_dtype)


def load_pretraining(
    path: str | os.PathLike[str], name: str | None = None, **fields: Any
) -> tuple[UnlabelledModel, dict[str, Any]]:
    """Returns (model, variables) of a file that has the decoder of its pre-training too.

    `name` and `fields` are the encoder's, as in `load_pretrained`, which returns the encoder only.
    Raises UserError for a file without a decoder, and as `open_pretrained` does.
    """
    opened = open_pretrained(path, name, **fields)
    model = opened.pretraining_model()
    return model, opened.variables_for(model)


def load_metadata(path: str | os.PathLike[str], name: str | None = None, **fields: Any) -> Metadata:
    """Returns the facts that a weights file states about its model; reads no tensor.

    Args:
        path: a weights file, a run's workdir or a published name, as in `load_pretrained`.
        name: the variant (`model_names`), if the file does not show it.
        **fields: fields of the model that the file does not show, such as `num_heads`.

    Returns:
        A `Metadata`, which `save_pretrained` takes. Its attributes are `name` (the variant or the
        family), `fields` (of the model), `preprocess` (mean, std, crop and interpolation; None: not
        stated), `class_names` (None: not stated), `provenance` (dataset, step, source, published
        accuracy), `metrics`, `train_class_counts` (examples per class) and `pretrain` (the decoder
        of a model that was pre-trained without labels).

    Raises:
        UserError: the file cannot be read, or does not show which model it is.

    >>> import jax
    >>> import vitswin_jax
    >>> fields = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    >>> model = vitswin_jax.create_model("vit", **fields)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
    >>> path = vitswin_jax.save_pretrained("small.safetensors", model, variables)
    >>> metadata = vitswin_jax.load_metadata(path)
    >>> metadata.name, metadata.fields["depth"]
    ('vit', 1)
    """
    return open_own(path, name, **fields).metadata


def make_preprocess(
    path_or_name: str | os.PathLike[str],
    name: str | None = None,
) -> Callable[..., Float32[np.ndarray, "b H W c"]]:
    """Returns a function from uint8 images to the input of a model.

    Args:
        path_or_name: a weights file, a run's workdir or a published name gives the preprocessing
            that the weights were trained with; the name of a model (`model_names`) gives the
            default of that model.
        name: the variant (`model_names`), if a file does not show it.

    Returns:
        A function of one image, uint8 (height, width, 3) in [0, 255], or of a sequence of images of
        any sizes. It resizes, crops and normalises them, and returns float32 (batch, H, W, 3) at
        the image size of the model; batch is 1 for one image.

    Raises:
        UserError: the file cannot be read, or no model has this name (with the nearest names).

    >>> import numpy as np
    >>> preprocess = make_preprocess("vit_tiny_patch16_224")
    >>> batch = preprocess(np.full((300, 400, 3), 255, np.uint8))
    >>> batch.shape, float(batch.max())
    ((1, 224, 224, 3), 1.0)
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

"""A model with its variables and metadata as one file, ours or of another code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from vitswin_jax.core.terminal import logger
from vitswin_jax.core.types import Params
from vitswin_jax.weights.files import describe, write_model
from vitswin_jax.weights.metadata import Metadata
from vitswin_jax.weights.publish import check_publishable, check_repository, push
from vitswin_jax.weights.runs import WEIGHTS

log = logger(__name__)


def save_pretrained(
    path: str | os.PathLike[str],
    model: nn.Module,
    variables: Mapping[str, Params],
    *,
    format: str = "native",
    metadata: Metadata | Mapping[str, Any] | None = None,
    push_to: str | None = None,
    private: bool = False,
    license: str | None = None,
) -> Path:
    """Writes a model with its weights to a file, completely or not at all.

    With `push_to`, publishes it on the Hugging Face hub too, with a model card.

    Args:
        path: the file. For "native", a folder gets a `model.safetensors`. For "timm" and
            "huggingface", a path without a suffix becomes a folder that
            `timm.create_model("local-dir:...")` and `from_pretrained` load as it is.
        model: a model of `create_model` or `load_pretrained`.
        variables: its variables, {"params": ...}, scanned or not.
        format: "native", or the library that shall read the file: "google", "timm", "microsoft",
            "huggingface" or "torchvision".
        metadata: a `Metadata` (`load_metadata`) or a mapping with its keys, such as `class_names`,
            `preprocess` and `provenance`; the fields are always the model's. With the metadata of a
            file of the same format, the new file gets its dtype and, unless it is in a folder, its
            prefix. Native files contain the metadata; of the others, folders state what they can.
        push_to: "USER/NAME" of a repository of the hub, for the formats "native", "timm" and
            "huggingface"; None: nothing is published. The repository is created if it does not
            exist. Needs `pip install 'vitswin_jax[hub]'` and a token (docs/hub.md).
        private: whether to create the repository as a private one.
        license: the licence of the weights for the card, by the hub's identifier, such as
            "apache-2.0"; None: the card states none.

    Returns:
        The path of the file or of the folder.

    Raises:
        UserError: the file cannot be written, the format is unknown or cannot hold the model, or
            model, variables and metadata do not fit each other. With `push_to`, the hub refuses;
            what can be known beforehand is checked before the file is written.

    >>> import jax
    >>> import vitswin_jax
    >>> fields = dict(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=2)
    >>> model = vitswin_jax.create_model("vit", **fields)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
    >>> facts = {"class_names": ("cat", "dog")}
    >>> path = vitswin_jax.save_pretrained("pets.safetensors", model, variables, metadata=facts)
    >>> vitswin_jax.load_metadata(path).class_names
    ('cat', 'dog')
    """
    path = Path(path).expanduser()
    if format == "native" and path.is_dir():
        path = path / WEIGHTS
    described = describe(model, metadata, origin=str(path))
    if push_to is None:
        repository = None
    else:  # before minutes of writing
        check_publishable(model, format, origin=push_to)
        repository = check_repository(push_to, private=private)
    otherwise = write_model(path, model, variables, format=format, metadata=described)
    if otherwise:
        log.warning("%s: %s", path, otherwise)
    if repository is not None:
        push(repository, model, variables, described, format=format, licence=license)
    return path

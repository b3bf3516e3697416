"""Vision Transformer and Swin Transformer in JAX: train, fine-tune, convert and deploy.

The public face; see the README for the commands. What touches JAX is imported on first use, so
that commands and data workers which do not need it start fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitswin_jax.core.version import __version__

if TYPE_CHECKING:
    from vitswin_jax.core.types import UserError
    from vitswin_jax.fitting import Fitted, fit
    from vitswin_jax.models.registry import create_model, model_names
    from vitswin_jax.train.keep.callbacks import Callback
    from vitswin_jax.weights.load import load_metadata, load_pretrained, make_preprocess
    from vitswin_jax.weights.open import Pretrained, open_pretrained
    from vitswin_jax.weights.save import save_pretrained

_HOMES = {
    "Callback": "train.keep.callbacks",
    "create_model": "models.registry",
    "fit": "fitting",
    "Fitted": "fitting",
    "model_names": "models.registry",
    "load_metadata": "weights.load",
    "load_pretrained": "weights.load",
    "make_preprocess": "weights.load",
    "open_pretrained": "weights.open",
    "Pretrained": "weights.open",
    "save_pretrained": "weights.save",
    "UserError": "core.types",
}

__all__ = [
    "Callback",
    "Fitted",
    "Pretrained",
    "UserError",
    "__version__",
    "create_model",
    "fit",
    "load_metadata",
    "load_pretrained",
    "make_preprocess",
    "model_names",
    "open_pretrained",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name == "train":  # vitswin_jax.train.trajectory is public
        return importlib.import_module(f"{__name__}.train")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "train"]

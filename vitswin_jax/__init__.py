"""Vision Transformer and Swin Transformer in JAX: train, fine-tune, convert and deploy.

- `create_model` makes a model by a name of `model_names`.
- `load_pretrained` returns a model with its weights from a file of any source; `open_pretrained`
  returns a `Pretrained`, which has the preprocessing and the class names too.
- `make_preprocess` returns the function from images to the input of a model, and `load_metadata`
  the facts that a weights file states.
- `save_pretrained` writes a model, in our format or in that of another library.
- `fit` trains a model on data, calls a `Callback`, and returns a `Fitted`.
- `train.trajectory` returns losses and gradient norms of given batches.
- `UserError` is raised for each mistake that a user can correct.
- `__version__` is the version, a str.

`help(vitswin_jax.fit)` explains each in full; the README has the commands. Modules that need JAX
are imported on first use, so that commands and data workers without it start fast.
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

"""Written weights against the model they were written from: the largest difference of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.layers import pair
from vitswin_jax.weights.open import NUMERICS, open_pretrained

UNSAID = ("norm_eps", "window_clip", "pad_before_roll", "mask_value", "group_norm_eps",
          "weight_var_eps", "weight_std_eps")  # fmt: skip
"""Fields that no configuration states: a library's own code decides them."""

IMAGES = 2
"""Random images that outputs are compared on."""


class Parity(NamedTuple):
    """The distance of the outputs of written weights from those of their model."""

    difference: float
    """The largest difference of an output, at matmul precision "highest"."""
    std: float
    """The standard deviation of the outputs."""
    outputs: str
    """The name of the outputs: "logits", or "features" where there is no head."""

    @property
    def same(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.difference <= 1e-5 * max(self.std, 1e-6)

    def __str__(self) -> str:
        return (
            f"largest difference of the {self.outputs}: {self.difference:.3g} (their std is "
            f"{self.std:.3g})"
        )


def compare_written(
    path: Path, name: str, model: nn.Module, variables: Mapping[str, Params]
) -> Parity:
    """Reads written weights back and compares their outputs with the model's, on random images.

    What the other code computes in another way, such as its GELU, is no difference of the file's.
    Raises UserError where the outputs have other shapes.
    """
    same = {field: getattr(model, field) for field in NUMERICS if hasattr(model, field)}
    if path.is_dir():  # whose configuration has these, but for what no configuration states
        stated = open_pretrained(path)
        same = {f: x for f, x in same.items() if f in UNSAID and getattr(stated.model, f) != x}
        reloaded = stated.changed(**same)
    else:
        reloaded = open_pretrained(path, name, **same)
    shape = (IMAGES, *pair(model.img_size), model.in_chans)
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        outputs, again = (
            np.asarray(jax.jit(each.apply)(weights, images))
            for each, weights in ((model, variables), (reloaded.model, reloaded.variables))
        )
    what = "logits" if model.num_classes else "features"
    if outputs.shape != again.shape:
        raise UserError(f"{path}: gives {again.shape[1]} {what}, not {outputs.shape[1]}.")
    return Parity(float(np.abs(outputs - again).max()), float(outputs.std()), what)

"""Adapters of LoRA in a tree of parameters: leaves `lora_a` and `lora_b` beside their kernel."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vitswin_jax.core.types import Params
from vitswin_jax.nn.scan import is_stacked

A, B = "lora_a", "lora_b"


def merge_adapters(params: Params, scale: float) -> Params:
    """Returns the model's own parameters: kernels are W + scale · A B, and adapters are gone."""
    flat = flatten_dict(params, sep="/")
    merged = without_adapters(flat)
    for path, a in flat.items():
        stem, _, leaf = path.rpartition("/")
        if leaf == A:
            product = functools.partial(jnp.tensordot, axes=1)
            product = jax.vmap(product) if is_stacked(path) else product
            merged[f"{stem}/kernel"] = flat[f"{stem}/kernel"] + scale * product(
                a, flat[f"{stem}/{B}"]
            )
    return unflatten_dict(merged, sep="/")


def without_adapters(flat: Mapping[str, object]) -> dict[str, object]:
    """Returns the paths of a flat tree that the model has itself."""
    return {path: leaf for path, leaf in flat.items() if path.rpartition("/")[2] not in (A, B)}

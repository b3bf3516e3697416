"""A case: a model, a task and its inputs, as files that every worker reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vitswin_jax.core.cores import cores
from vitswin_jax.models.registry import create_model, family_of
from vitswin_jax.nn.layers import pair
from vitswin_jax.plan.cost import describe
from vitswin_jax.weights.save import save_pretrained

TASKS = {"inference": 1, "train": 3}
"""The multiply-adds of a task, in forward passes: a backward pass takes two."""

# Of `save_pretrained`: suffix, and what its readers compute whatever the file says.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": (".safetensors", {}),
    "timm": (".safetensors", {"pad_before_roll": False}),
    "huggingface": (".safetensors", {"norm_eps": 1e-12}),
    "google": (".npz", {"act": "gelu_tanh"}),
}
_VIT_FIELDS = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of a comparison; `img_size` None is the model's own."""

    name: str
    task: str = "inference"
    batch_size: int = 8
    img_size: int | None = None
    dtype: str = "float32"

    @property
    def model(self) -> nn.Module:
        """The model, as exact as its family's default."""
        return create_model(self.name, **self.fields)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields for `create_model`, besides the name."""
        return {} if self.img_size is None else {"img_size": self.img_size}

    @property
    def family(self) -> str:
        """The model's family: "vit", "swin", ..."""
        return family_of(self.model)

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        side = "x".join(map(str, dict.fromkeys(pair(self.model.img_size))))
        return f"{self.name}, {self.task}, batch {self.batch_size}, {side} px, {self.dtype}"

    @property
    def flops(self) -> int:
        """Floating-point operations of one call: two for each multiply-add."""
        return 2 * describe(self.model).multiply_adds * self.batch_size * TASKS[self.task]


def write_case(case: Case, form: str, folder: Path) -> dict[str, Any]:
    """Writes random weights in a format of `FORMATS`, and inputs; returns a worker's job."""
    suffix, fields = FORMATS[form]
    model = case.model
    model = model.clone(**{key: value for key, value in fields.items() if hasattr(model, key)})
    size = pair(model.img_size)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((case.batch_size, *size, model.in_chans), np.float32)
    labels = rng.integers(model.num_classes, size=case.batch_size, dtype=np.int32)
    np.savez(folder / "inputs.npz", images=images, labels=labels)
    weights = folder / f"weights{suffix}"
    save_pretrained(weights, model, random_variables(model), format=form)
    return {
        "name": case.name,
        "task": case.task,
        "dtype": case.dtype,
        "num_classes": model.num_classes,
        "img_size": case.img_size,
        "fields": {field: getattr(model, field) for field in _VIT_FIELDS if hasattr(model, field)},
        "weights": str(weights),
        "inputs": str(folder / "inputs.npz"),
        "threads": cores(),  # XLA takes them all; torch must be given the number
        "variant": {},
    }


def random_variables(model: nn.Module) -> Mapping[str, Any]:
    """Returns variables of which none is zero, as fresh heads and norms are; runs no init."""
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, *pair(model.img_size), model.in_chans), np.float32)
    key = jax.eval_shape(jax.random.key, 0)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        mean = _MEANS.get(path[-1].key, 0.0)
        return np.float32(mean) + 0.02 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, key, images))


_MEANS = {"scale": 1.0, "gamma": 1.0, "logit_scale": float(np.log(10.0))}

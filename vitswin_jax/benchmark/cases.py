"""A case: a model, a task and its inputs, as files that every worker reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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

_TANH = {"act": "gelu_tanh"}
_TIMM = {"pad_before_roll": False}
_HUGGINGFACE = {"window_clip": "min"}
_DEFAULTS = {**_HUGGINGFACE, "norm_eps": 1e-12}  # of transformers' ViTs


class Form(NamedTuple):
    """A format of `save_pretrained` as a peer reads it; without a suffix, a folder.

    `fields` are what all its readers compute, and `own` what this peer computes whatever the file
    says, so that our model is given it too.
    """

    format: str
    suffix: str
    fields: Mapping[str, Any] = {}
    own: Mapping[str, Any] = {}


FORMATS = {
    "native": Form("native", ".safetensors"),
    "timm": Form("timm", ".safetensors", _TIMM),
    "timm-tanh": Form("timm", ".safetensors", _TIMM, _TANH),
    "huggingface": Form("huggingface", "", _HUGGINGFACE),
    "huggingface-defaults": Form("huggingface", "", _DEFAULTS),
    "huggingface-tanh": Form("huggingface", "", _DEFAULTS, _TANH),
    "google": Form("google", ".npz", _TANH),
}
_VIT_FIELDS = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "init_values")


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of a comparison; `img_size` None is the model's own."""

    name: str
    task: str = "inference"
    batch_size: int = 8
    img_size: int | None = None
    dtype: str = "float32"
    num_classes: int | None = None  # 0: the pooled features are compared

    @property
    def model(self) -> nn.Module:
        """The model, as exact as its family's default."""
        return create_model(self.name, **self.fields)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields for `create_model`, besides the name."""
        fields = {"img_size": self.img_size, "num_classes": self.num_classes}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def family(self) -> str:
        """The model's family: "vit", "swin", ..."""
        return family_of(self.model)

    @property
    def kind(self) -> str:
        """The family, or "dinov2" for ViTs with DINOv2's layer scale, which fewer peers have."""
        scaled = self.family == "vit" and self.model.init_values is not None
        return "dinov2" if scaled else self.family

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        side = "x".join(map(str, dict.fromkeys(pair(self.model.img_size))))
        return f"{self.name}, {self.task}, batch {self.batch_size}, {side} px, {self.dtype}"

    @property
    def flops(self) -> int:
        """Floating-point operations of one call: two for each multiply-add."""
        return 2 * describe(self.model).multiply_adds * self.batch_size * TASKS[self.task]


def write_case(case: Case, form: str, folder: Path, *, program: bool = False) -> dict[str, Any]:
    """Writes random weights in a format of `FORMATS`, and inputs; returns a worker's job.

    With `program`, writes an ONNX file of the model too.
    """
    written, model = FORMATS[form], case.model
    fields = {key: value for key, value in written.fields.items() if hasattr(model, key)}
    if case.kind != "vit":
        fields.pop("norm_eps", None)
    model = model.clone(**fields)
    size = pair(model.img_size)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((case.batch_size, *size, model.in_chans), np.float32)
    labels = rng.integers(model.num_classes or 1, size=case.batch_size, dtype=np.int32)
    np.savez(folder / "inputs.npz", images=images, labels=labels)
    weights = folder / f"weights{written.suffix}"
    variables = random_variables(model)
    save_pretrained(weights, model, variables, format=written.format)
    if program:
        from vitswin_jax.export.onnx import export_onnx
        from vitswin_jax.export.program import make_program

        export_onnx(folder / "program.onnx", make_program(model, variables))
    return {
        "name": case.name,
        "task": case.task,
        "dtype": case.dtype,
        "num_classes": model.num_classes,
        "img_size": case.img_size,
        "program": str(folder / "program.onnx") if program else None,
        "fields": {field: getattr(model, field) for field in _VIT_FIELDS if hasattr(model, field)},
        "weights": str(weights),
        "inputs": str(folder / "inputs.npz"),
        "threads": cores(),  # XLA takes them all; torch must be given the number
        "own": dict(written.own),
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

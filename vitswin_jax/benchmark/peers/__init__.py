"""Peers: what each library needs, what it can run and whose files it reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from vitswin_jax.benchmark.peers import in_equinox, in_flax, in_torch, runtimes
from vitswin_jax.benchmark.peers.work import Job, Work


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library: what its interpreter must have, what it can run, whose files it reads.

    `families` are kinds of `cases.Case`, and `packages` the distributions whose versions count.
    """

    needs: tuple[str, ...]
    reads: str  # a key of `cases.FORMATS`
    families: tuple[str, ...]
    dtypes: tuple[str, ...]
    start: Callable[[Job], Work]
    how: str  # the form in which its call is timed
    packages: tuple[str, ...]
    tasks: tuple[str, ...] = ("inference", "train")
    program: bool = False  # whether it runs our ONNX file


_BOTH = ("float32", "bfloat16")
_ALL = ("vit", "dinov2", "swin", "swinv2")
_LINEN = ("jax", "flax", "optax")
_JIT = "`jax.jit`"
_NNX = "`jax.jit` of the merged NNX module"
_VMAP = "`jax.jit` of `jax.vmap`"
PEERS = {
    "timm": Peer(
        ("torch", "timm"),
        "timm",
        _ALL,
        _BOTH,
        in_torch.timm,
        "eager, `torch.inference_mode`",
        ("timm", "torch"),
    ),
    "timm-compiled": Peer(
        ("torch", "timm"),
        "timm",
        _ALL,
        _BOTH,
        functools.partial(in_torch.timm, compiled=True),
        "`torch.compile`",
        ("timm", "torch"),
    ),
    "transformers": Peer(
        ("torch", "transformers"),
        "huggingface",
        ("vit", "dinov2", "swin"),
        _BOTH,
        in_torch.transformers,
        "eager, `torch.inference_mode`",
        ("transformers", "torch"),
    ),
    "transformers-flax": Peer(
        (*_LINEN, "transformers.models.vit.modeling_flax_vit"),
        "huggingface-defaults",
        ("vit",),
        _BOTH,
        in_flax.transformers_flax,
        _JIT,
        ("transformers", "flax", "jax"),
    ),
    "keras-hub": Peer(
        ("jax", "keras_hub", "optax"),
        "huggingface",
        ("vit", "dinov2", "swin"),
        ("float32",),
        in_flax.keras_hub,
        "`jax.jit` of `stateless_call`",
        ("keras-hub", "keras", "jax"),
    ),
    "jimm": Peer(
        ("jax", "jimm", "optax"),
        "huggingface-defaults",
        ("vit", "dinov2"),
        ("float32",),
        in_flax.jimm,
        _NNX,
        ("jax-image-models", "flax", "jax"),
    ),
    "bonsai": Peer(
        ("jax", "bonsai.models.vit", "optax"),
        "huggingface-tanh",
        ("vit",),
        ("float32",),
        in_flax.bonsai,
        _NNX,
        ("jax-bonsai", "flax", "jax"),
    ),
    "equimo": Peer(
        ("jax", "equimo", "optax", "safetensors"),
        "timm",
        ("vit", "dinov2"),
        ("float32",),
        in_equinox.equimo,
        _VMAP,
        ("equimo", "equinox", "jax"),
    ),
    "noxton": Peer(
        ("jax", "noxton", "optax", "safetensors"),
        "timm-tanh",
        ("swin",),
        ("float32",),
        in_equinox.noxton,
        _VMAP,
        ("noxton", "equinox", "jax"),
    ),
    "onnxruntime": Peer(
        ("onnxruntime",),
        "timm",
        _ALL,
        ("float32",),
        runtimes.onnxruntime,
        "our ONNX file",
        ("onnxruntime",),
        ("inference",),
        program=True,
    ),
    "openvino": Peer(
        ("openvino",),
        "timm",
        _ALL,
        ("float32",),
        runtimes.openvino,
        "our ONNX file, float32",
        ("openvino",),
        ("inference",),
        program=True,
    ),
    "vit_jax": Peer(
        (*_LINEN, "vit_jax"),
        "google",
        ("vit",),
        ("float32",),
        in_flax.vit_jax,
        _JIT,
        ("flax", "jax"),
    ),
    "big_vision": Peer(
        (*_LINEN, "big_vision", "tensorflow"),
        "google",
        ("vit",),
        _BOTH,
        in_flax.big_vision,
        _JIT,
        ("flax", "jax"),
    ),
}

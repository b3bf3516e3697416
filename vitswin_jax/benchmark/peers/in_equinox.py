"""Peers in Equinox, whose modules are one image's; `jax.vmap` makes them a batch's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitswin_jax.benchmark.peers.work import Job, Work, jax_peer


def equimo(job: Job) -> Work:
    """Returns the work of Equimo's ViT."""
    import jax
    from equimo.vision.models import VisionTransformer
    from safetensors.numpy import load_file

    fields = job["fields"]
    model = VisionTransformer(
        img_size=job["images"].shape[1],
        in_channels=job["images"].shape[-1],
        dim=fields["embed_dim"],
        patch_size=fields["patch_size"],
        num_heads=[fields["num_heads"]],
        depths=[fields["depth"]],
        mlp_ratio=fields["mlp_ratio"],
        reg_tokens=0,
        init_values=fields["init_values"],
        act_layer="exactgelu",
        eps=1e-6,
        global_pool="token",
        num_classes=job["num_classes"],
        key=jax.random.key(0),
    )
    tensors = load_file(job["weights"])
    model = _with_tensors(model, tensors, _EQUIMO)

    def call(model: Any, image: Any) -> Any:
        return model(image.transpose(2, 0, 1), key=jax.random.key(0), inference=True)

    return _batched(job, model, call)


def noxton(job: Job) -> Work:
    """Returns the work of noxton's Swin-T, with torchvision's index of relative positions."""
    import equinox
    import jax
    from noxton.models import SwinTransformer
    from noxton.models.swin_transformer.swin_transformer import ShiftedWindowAttention
    from safetensors.numpy import load_file

    model, state = SwinTransformer.from_pretrained("swin_t")
    model, state = equinox.nn.inference_mode((model, state))
    places = _relative_positions(7)
    for attention in _all(model, ShiftedWindowAttention):  # as torchvision's files have them
        state = state.set(attention.relative_position_index, places)
    tensors = load_file(job["weights"])
    model = _with_tensors(model, tensors, _NOXTON)

    def call(model: Any, image: Any) -> Any:
        return model(image.transpose(2, 0, 1), state, key=jax.random.key(0))[0]

    return _batched(job, model, call)


def _all(model: Any, kind: type) -> list[Any]:
    """Returns the modules of a class."""
    import jax

    leaves = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _relative_positions(window: int) -> Any:
    """Returns the row of the bias table for each pair of places of a window; (window ** 4,)."""
    import jax

    places = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij"), -1).reshape(-1, 2)
    rows, columns = np.moveaxis(places[:, None] - places[None], -1, 0) + window - 1
    return jax.numpy.asarray(rows * (2 * window - 1) + columns).ravel()


_EQUIMO = (
    (r"blocks\.0\.blocks", "blocks"),
    (r"prenorm", "norm1"),
    (r"(blocks\.\d+)\.norm\b", r"\1.norm2"),
    (r"global_pos_embed\.weight", "pos_embed"),
)
_NOXTON = (
    (r"\blayers\.(\d+)", r"\1"),  # of sequences
    (r"features\.0\.0\b", "patch_embed.proj"),
    (r"features\.0\.2\b", "patch_embed.norm"),
    *((rf"features\.{2 * stage + 1}\b", f"layers.{stage}.blocks") for stage in range(4)),
    *((rf"features\.{2 * stage}\b", f"layers.{stage}.downsample") for stage in (1, 2, 3)),
    (r"mlp\.0\b", "mlp.fc1"),
    (r"mlp\.3\b", "mlp.fc2"),
    (r"^head\b", "head.fc"),
)


def _with_tensors(
    model: Any, tensors: Mapping[str, Any], rules: tuple[tuple[str, str], ...]
) -> Any:
    """Returns a module with timm's tensors: each array by its path, renamed by the rules."""
    import equinox
    import jax

    def tensor(path: Any, leaf: Any) -> Any:
        if not equinox.is_inexact_array(leaf):
            return leaf
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        return jax.numpy.asarray(tensors[name]).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(tensor, model)


def _batched(job: Job, model: Any, call: Callable[[Any, Any], Any]) -> Work:
    import equinox
    import jax

    params, rest = equinox.partition(model, equinox.is_inexact_array)

    def apply(params: Any, images: Any) -> Any:
        whole = equinox.combine(params, rest)
        return jax.vmap(lambda image: call(whole, image))(images)

    return jax_peer(job, apply, params)

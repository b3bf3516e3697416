"""Keys of a Vision Transformer's file prepared for the rules, and restored when one is written."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources.rules import rename
from vitswin_jax.weights.sources.source import Prepared, square


def fold_class_position(tensors: Tensors, *, cls: str, reg: str, pos: str) -> dict[str, Tensor]:
    """Returns the tensors with the class token's position added to the token itself.

    That is what DINOv2 with registers needs: positions are the class token's and the patches', and
    registers, which have none, stand between. Other files stay as they are.
    """
    tensors = dict(tensors)
    if not {cls, reg, pos} <= tensors.keys():
        return tensors
    token, positions = tensors[cls], tensors[pos]
    if len(positions.shape) != 3 or square(positions.shape[1] - 1) is None:
        return tensors
    tensors[cls] = Tensor(token.shape, token.dtype, lambda: token.read() + positions.read()[:, :1])
    shape = (1, positions.shape[1] - 1, positions.shape[2])
    tensors[pos] = positions.map(lambda array: array[:, 1:], shape)
    return tensors


def restore_dinov2(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays with what Hugging Face's DINOv2 has and no model of ours: zeros.

    They are the mask token, which no classifier reads, and beside registers the class token's
    position, for the token has its own added.
    """
    mask, registers, positions = (
        f"{prefix}embeddings.{name}"
        for name in ("mask_token", "register_tokens", "position_embeddings")
    )
    restored = arrays | {mask: np.zeros_like(arrays[positions][0, :1])}
    if registers in arrays:
        array = arrays[positions]
        restored[positions] = np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)
    return restored


_EVAS = (
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."), (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."), (r"\.mlp\.w2\.", ".mlp.fc1_x."),
)  # fmt: skip
"""Names of BAAI's EVA, EVA-02 and EVA-CLIP, and timm's for the same."""


def prepare_timm(tensors: Tensors) -> Prepared:
    """Returns names as timm has them, for files of DINOv2's and of EVA's own code.

    Frequencies of rotary positions, which one array has for all blocks, are divided; cosines and
    sines follow from sizes, and are left out.
    """
    changes = (("^register_tokens$", "reg_token"), (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"))
    tensors = rename(tensors, (*changes, *_EVAS))
    turned = [name for name in tensors if re.search(r"(^|\.)rope\.freqs_(cos|sin)$", name)]
    tensors = {name: t for name, t in tensors.items() if name not in turned}
    freqs = tensors.get("rope.freqs")
    if freqs is not None and len(freqs.shape) == 4:
        del tensors["rope.freqs"]
        for i in range(freqs.shape[1]):
            tensors[f"blocks.{i}.rope.freqs"] = _second(freqs, i)
    positions = {"cls": "cls_token", "reg": "reg_token", "pos": "pos_embed"}
    return fold_class_position(tensors, **positions), turned


def _second(tensor: Tensor, index: int) -> Tensor:
    """Returns one entry of the second axis."""
    shape = (tensor.shape[0], *tensor.shape[2:])
    return tensor.map(lambda array: array[:, index], shape)


def restore_timm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors to write, with the rotary frequencies of all blocks in one array."""
    own = [name for name in arrays if name.endswith(".rope.freqs")]
    restored = {name: array for name, array in arrays.items() if name not in own}
    if own:
        blocks = (arrays[f"blocks.{i}.rope.freqs"] for i in range(len(own)))
        restored["rope.freqs"] = np.stack(list(blocks), axis=1)
    return restored


_PLACE = re.compile(r"(embeddings|encoder|layernorm|pooler)\.")


def under(base: str, tensors: Tensors) -> dict[str, Tensor]:
    """Returns the tensors with `base` before the names of the base model."""
    return {base * bool(_PLACE.match(name)) + name: t for name, t in tensors.items()}


def based(base: str) -> Callable[[Tensors], Prepared]:
    """Returns a `prepare` that puts `base` before the names of the base model."""

    def prepare(tensors: Tensors) -> Prepared:
        tensors = under(base, tensors)
        names = {"cls": "cls_token", "reg": "register_tokens", "pos": "position_embeddings"}
        places = {key: f"{base}embeddings.{name}" for key, name in names.items()}
        tensors = fold_class_position(tensors, **places)
        if any("classifier" in name for name in tensors):  # which reads no pooler's output
            pooler = [name for name in tensors if name.startswith(base + "pooler.")]
            return {n: t for n, t in tensors.items() if n not in pooler}, pooler
        return tensors, []

    return prepare


def prepare_google(tensors: Tensors) -> Prepared:
    """Returns scanned blocks one by one, and norms of a ResNet as in the older files."""
    unstacked: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith("Transformer/encoderblock/"):
            unstacked[name] = tensor
            continue
        for i in range(tensor.shape[0]):
            block = name.replace("encoderblock/", f"encoderblock_{i}/", 1)
            unstacked[block] = tensor.row(i)
    for name, tensor in unstacked.items():
        if re.search(r"(^|/)gn[^/]*/(scale|bias)$", name) and len(tensor.shape) == 1:
            shape = (1, 1, 1, *tensor.shape)  # as in the older files
            unstacked[name] = tensor.map(lambda array: array[None, None, None], shape)
    return unstacked, []

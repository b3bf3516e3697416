"""transformers' BEiT, BEiT v2 and Data2VecVision: their files' names beside ours.

timm's and Microsoft's files of the same models are in `masked.py`. Keys have no bias there, and one
of zeros here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitswin_jax.core.types import UserError
from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensor, Tensors
from vitswin_jax.weights.sources.masked import TABLE, describe_simmim_vit
from vitswin_jax.weights.sources.preprocess import beit_preprocess
from vitswin_jax.weights.sources.rules import Rule, norm
from vitswin_jax.weights.sources.source import SOME, Source, only
from vitswin_jax.weights.sources.vit import BLOCK_, huggingface_rules
from vitswin_jax.weights.sources.vit_fields import Prepared

_PLACE = re.compile(r"(embeddings|encoder|layernorm|pooler)\.")


def _rules(base: str) -> tuple[Rule, ...]:
    layer = base + "encoder.layer.{i}."
    own = layer + "attention.attention.relative_position_bias."
    return (
        Rule(layer + "lambda_{k}", BLOCK_ + "ls{k}/gamma"),
        *huggingface_rules(base, head="classifier"),
        Rule(own + TABLE, BLOCK_ + TABLE),
        Rule(f"{base}encoder.relative_position_bias.{TABLE}", TABLE),
        *norm(base + "pooler.layernorm.", "fc_norm/"),
        Rule("{p:.*}relative_position_index", None),
    )


def _with_key_bias(base: str, tensors: Tensors) -> Prepared:
    """Returns the base model's names under `base`, with biases of zero for keys."""
    kept = {base * bool(_PLACE.match(name)) + name: t for name, t in tensors.items()}
    for name in list(kept):
        if name.endswith(".attention.query.bias"):
            zeros = np.zeros(kept[name].shape, np.float32)
            kept[name.replace(".query.", ".key.")] = Tensor.of(zeros)
    return kept, []


def _without_key_bias(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays without the biases of keys; raises UserError where they are not zero."""
    keys = [name for name in arrays if name.endswith(".attention.key.bias")]
    if any(np.any(arrays[name]) for name in keys):
        raise UserError(
            "keys have no bias in transformers' BEiT, and the model's is not zero; write native."
        )
    return {name: array for name, array in arrays.items() if name not in keys}


_BIASED: Mapping[str, tuple[Any, ...]] = {
    "pos_embed": ("relative",), "pos_embed_at": ("every", "shared"), "init_values": (SOME,),
}  # fmt: skip
_HOLDS = (
    only(**_BIASED, global_pool=("avg",), fc_norm=(True,)),
    only(**_BIASED, global_pool=("token",)),
)


def _source(name: str, base: str, *, root: str = "", **own: Any) -> Source:
    return Source(
        name=f"Hugging Face ({name})",
        format="huggingface",
        family="vit",
        marks=(r"encoder\.layer\.0\.lambda_1",),
        rules=_rules(base),
        describe=describe_simmim_vit,
        numerics={"act": "gelu", "norm_eps": 1e-12},
        prepare=lambda tensors: _with_key_bias(base, tensors),
        bias_table=resize.bilinear,
        preprocess=beit_preprocess,
        root=root,
        base=base,
        bare=True,
        restore=_without_key_bias,
        **own,
    )


SOURCES = (
    _source("Data2Vec", "data2vec_vision.", root="data2vec_vision."),
    _source("BEiT", "beit.", holds=_HOLDS),
)

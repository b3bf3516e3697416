"""transformers' BEiT, BEiT v2 and Data2VecVision: their files' names beside ours.

timm's and Microsoft's files of the same models are in `masked.py`. Keys have no bias there, and one
of zeros here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vitswin_jax.weights import resize
from vitswin_jax.weights.sources.masked import (
    TABLE,
    describe_simmim_vit,
    with_key_bias,
    without_key_bias,
)
from vitswin_jax.weights.sources.preprocess import beit_preprocess
from vitswin_jax.weights.sources.rules import Rule, norm
from vitswin_jax.weights.sources.source import SOME, Source, only
from vitswin_jax.weights.sources.vit_prepare import under
from vitswin_jax.weights.sources.vit_rules import BLOCK_, huggingface_rules


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


_QUERY, _KEY = ".attention.query.bias", ".attention.key.bias"
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
        prepare=lambda t: (with_key_bias(under(base, t), query=_QUERY, key=_KEY), []),
        bias_table=resize.bilinear,
        preprocess=beit_preprocess,
        root=root,
        base=base,
        bare=True,
        restore=functools.partial(without_key_bias, key=_KEY),
        **own,
    )


SOURCES = (
    _source("Data2Vec", "data2vec_vision.", root="data2vec_vision."),
    _source("BEiT", "beit.", holds=_HOLDS),
)

"""timm's Swin V2-CR: names in its files and ours, and the fields that a file shows."""

from __future__ import annotations

import itertools
import re

import numpy as np

from vitswin_jax.models.swinv2_cr import extra_norms
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.layouts import conv, dense, dense_out, vector
from vitswin_jax.weights.sources.preprocess import timm_preprocess
from vitswin_jax.weights.sources.rules import Rule, affine, norm, rename
from vitswin_jax.weights.sources.source import Fields, Hints, Named, Prepared, Source, count
from vitswin_jax.weights.sources.swin import BLOCK_, STAGE_, TIMM
from vitswin_jax.weights.sources.swin_fields import common_fields, hinted_windows

# fmt: off
BLOCK = "stages.{i}.blocks.{j}."
DOWN = "stages.{i+1}.downsample."
RULES = (
    *affine("patch_embed.proj.",           "patch_embed/proj/", conv),
    *norm("patch_embed.norm.",             "patch_embed/norm/"),
    *norm(BLOCK + "{n:norm[12]}.",         BLOCK_ + "{n}/"),
    *norm(BLOCK + "norm3.",                STAGE_ + "norm_{j}/"),
    *affine(BLOCK + "attn.qkv.",           BLOCK_ + "attn/qkv/", dense, vector),
    *affine(BLOCK + "attn.proj.",          BLOCK_ + "attn/proj/", dense_out),
    Rule(BLOCK + "attn.logit_scale",       BLOCK_ + "attn/logit_scale",      vector),
    *affine(BLOCK + "attn.meta_mlp.{f:fc[12]}.", BLOCK_ + "attn/cpb_mlp/{f}/"),
    *affine(BLOCK + "mlp.{f:fc[12]}.",     BLOCK_ + "mlp/{f}/"),
    *norm(DOWN + "norm.",                  STAGE_ + "downsample/norm/"),
    Rule(DOWN + "reduction.weight",        STAGE_ + "downsample/reduction/kernel", dense),
    *norm("norm.",                         "norm/"),
    *affine("head.fc.",                    "head/"),
)
# fmt: on
_NORM = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.norm3\.(weight|bias)")


def _prepare(tensors: Tensors) -> Prepared:
    """Returns the last block's norm as the final one, and the names of older files as they are now.

    Those have the inverse of `logit_scale`'s exponential, `tau`, and a head without `fc`.
    """
    places = {name: found for name in tensors if (found := _NORM.fullmatch(name))}
    last = max(((int(f[1]), int(f[2])) for f in places.values()), default=None)
    final = {n: f[3] for n, f in places.items() if (int(f[1]), int(f[2])) == last}
    changes = (
        *((rf"^{re.escape(name)}$", f"norm.{kind}") for name, kind in final.items()),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    )
    kept = rename(tensors, changes)
    for name in [name for name in kept if name.endswith(".attn.tau")]:
        tau = kept.pop(name)
        scale = tau.map(lambda array: np.log(1 / array).reshape(-1), (tau.size,))
        kept[name.removesuffix("tau") + "logit_scale"] = scale
    return kept, []


def _restore(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays with the final norm as the last block's."""
    stage = count(arrays, "stages.{}.blocks.0.norm1.weight") - 1
    block = count(arrays, f"stages.{stage}.blocks.{{}}.norm1.weight") - 1
    place = f"stages.{stage}.blocks.{block}.norm3."
    return {re.sub(r"^norm\.", place, name): array for name, array in arrays.items()}


def _describe(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns a V2-CR's fields; windows are the hints', for no tensor shows them."""
    del tensors
    fields = common_fields(named, "stage_{}/block_0/attn/logit_scale", heads_axis=0)
    fields |= _extra_norms(named, fields["depths"], hints)
    return fields | hinted_windows(hints, "biases that an MLP makes of offsets")


def _extra_norms(named: Named, depths: tuple[int, ...], hints: Hints) -> Fields:
    """Returns the fields whose norms are those of the file, the hints' before others."""
    found = tuple(
        tuple(i for i in range(depth) if f"stage_{stage}/norm_{i}/scale" in named)
        for stage, depth in enumerate(depths)
    )
    known = hints.get("extra_norm_period", 0), hints.get("extra_norm_stage", False)
    for period, after_stage in (known, *itertools.product(range(max(depths) + 1), (False, True))):
        if extra_norms(depths, period, after_stage) == found:
            return {"extra_norm_period": period, "extra_norm_stage": after_stage}
    return {"extra_norm_period": 0, "extra_norm_stage": True}  # then tensors do not fit the model


SOURCES = (
    Source(
        name="timm",
        format="timm",
        family="swinv2_cr",
        marks=(r"stages\.0\.blocks\.0\.attn\.meta_mlp\.fc1\.weight",),
        rules=RULES,
        describe=_describe,
        numerics=TIMM,
        prepare=_prepare,
        preprocess=timm_preprocess,
        holds=({"ape": (False,), "patch_norm": (True,), "qkv_bias": (True,), "act": ("gelu",)},),
        restore=_restore,
    ),
)

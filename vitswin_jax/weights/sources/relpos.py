"""timm's ViTs with relative positions (`vit_relpos_*`, `vit_srelpos_*`): their names beside ours.

Biases are of a table or of an MLP of offsets, a block's own or shared by all blocks.
"""

from __future__ import annotations

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.relative import RELATIVE_MLPS
from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.masked import TABLE, table_size
from vitswin_jax.weights.sources.preprocess import timm_preprocess
from vitswin_jax.weights.sources.rules import Rule, affine
from vitswin_jax.weights.sources.source import UNSEEN, Fields, Hints, Named, Source, only
from vitswin_jax.weights.sources.vit import PATCHES
from vitswin_jax.weights.sources.vit_fields import describe_timm
from vitswin_jax.weights.sources.vit_rules import BLOCK, BLOCK_, TIMM_RULES

# fmt: off
RULES = (
    *affine(BLOCK + "attn.rel_pos.mlp.{f:fc[12]}.", BLOCK_ + "cpb_mlp/{f}/"),
    *affine("shared_rel_pos.mlp.{f:fc[12]}.",       "cpb_mlp/{f}/"),
    Rule(f"{BLOCK}attn.rel_pos.{TABLE}",           BLOCK_ + TABLE),
    Rule(f"shared_rel_pos.{TABLE}",                TABLE),
    *TIMM_RULES,
)
# fmt: on


def describe_relpos(named: Named, tensors: Tensors, hints: Hints) -> Fields:
    """Returns the fields; biases show the heads, and their table the image size.

    Raises UserError where it is not known whether norms are before or after the branches.
    """
    at = "every" if any(name.startswith("blocks.0.attn.rel_pos.") for name in tensors) else "shared"
    place = "block_0/" if at == "every" else ""
    mlp = named.get(f"{place}cpb_mlp/fc2/kernel")
    heads = mlp[0].shape[0] if mlp else named[place + TABLE][0].shape[1]
    hints = hints.with_fields(num_heads=heads, pos_embed="none")
    hints.pop("embed_dim", None)  # these heads are of the file's width
    if "block_0/ls1/gamma" not in named and not (hints.named or "norm_at" in hints):
        raise UserError(
            "the file does not show whether its norms are before or after the branches "
            "(vit_relpos_*_rpn_*); give the name of its model, its config.json, or norm_at=: "
            "before or after."
        )
    fields = describe_timm(named, tensors, hints) | {"pos_embed_at": at}
    if mlp is None:
        rows = named[place + TABLE][0].shape[0] - 3 * fields["class_token"]
        return fields | {"pos_embed": "relative", "img_size": table_size(rows, fields, hints)}
    bounded = f"{place}cpb_mlp/fc2/bias" not in named
    kind = next(kind for kind, (_, as_swin) in RELATIVE_MLPS.items() if as_swin == bounded)
    return fields | {"pos_embed": kind, "rel_pos_dim": mlp[0].shape[1]}


SOURCES = (
    Source(
        name="timm",
        format="timm",
        family="vit",
        marks=(PATCHES, r"(shared_rel_pos|blocks\.0\.attn\.rel_pos)\..*"),
        rules=RULES,
        describe=describe_relpos,
        numerics={"act": "gelu", "norm_eps": 1e-6, **UNSEEN},
        bias_table=resize.geometric,
        preprocess=timm_preprocess,
        holds=(
            only(
                "init_values", "fc_norm", "class_token", "norm_at", "qk_norm",
                pos_embed=("relative", *RELATIVE_MLPS), pos_embed_at=("every", "shared"),
                global_pool=("avg", "token"), qkv_bias=(True, False),
            ),
        ),
    ),
)  # fmt: skip

"""Architectures that vitswin_jax does not have, by their tensors.

A file of one is refused by its name, and never read as the model that most of its keys look like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vitswin_jax.core.types import UserError
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.source import Fields, Hints

# fmt: off
OTHERS: tuple[tuple[str, str], ...] = (  # what a name of theirs has, the architecture
    (r"\.beit3\.|(^|\.)blocks\.0\.attn\.[AB]\.", "BEiT-3"),
    (r"blocks\.0\.attn\.rel_pos_h$", "SAM's or ViTDet's encoder, or MViTv2"),
    (r"blocks\.0\.attn\.w_msa\.", "mmpretrain's Swin Transformer"),
    (r"(^|\.)layers\.0\.ln1\.weight$", "mmpretrain's Vision Transformer"),
    (r"blocks\.0\.attn\.lambda_q1$", "a ViT with differential attention"),
    (r"blocks\.0\.(in_proj\.weight|attns\.0\.)", "a ViT with parallel blocks"),
    (r"(^|\.)embeds\.proj\.weight$", "timm's NaFlexVit"),
    (r"blocks\.0\.attn\.proj_l\.weight$|(^|\.)blocks_token_only\.", "CaiT"),
    (r"(^|\.)hidden_states_norms\.", "transformers' backbone of a detector (norms of its maps)"),
    (r"(^|\.)swinViT\.|(^|\.)layers1\.0\.blocks\.0\.", "MONAI's Swin UNETR"),
    (r"(^|\.)stages\.0\.blocks\.0\.(conv_dw|dwconv)\.|(^|\.)stages\.0\.0\.dwconv\.", "ConvNeXt"),
    (r"(^|\.)layer1\.0\.conv1\.weight$", "a ResNet with BatchNorm"),
)
# fmt: on


def other_architecture(names: Iterable[str]) -> str | None:
    """Returns the architecture whose tensors are among names, None if it is none of `OTHERS`."""
    names = list(names)
    found = (other for mark, other in OTHERS if any(re.search(mark, name) for name in names))
    return next(found, None)


DEIT3_ROOT = "model"
"""The key of the state dict in DeiT's own files; timm's files have none."""


def refuse_lookalikes(fields: Fields, tensors: Tensors, hints: Hints) -> None:
    """Raises UserError for files in timm's layout that may as well be other architectures'.

    A configuration or a name decides; without them, no key does.
    """
    if hints.named or "rope_type" in hints.stated:
        return
    seen = {
        "its biases are of queries and values only, as in EVA and DINOv3": not isinstance(
            fields["qkv_bias"], bool
        ),
        "it has norms inside its branches, as in BEiT-3 and EVA-02's CLIP": (
            fields["scale_attn_norm"] or fields["scale_mlp_norm"]
        ),
        "its MLPs have gates apart, as in DINOv3 and AIMv2": "blocks.0.mlp.fc1_g.weight" in tensors,
        "its LayerScale is called gamma_1, as in EVA, RoPE ViTs and DeiT-3's own files": any(
            name.endswith("blocks.0.gamma_1") for name in tensors
        )
        and hints.root != DEIT3_ROOT,
        "it has neither a class token nor a bias of queries, keys and values, as in "
        "vit_*_rpn_* (norms after the branches)": not (
            fields["class_token"] or fields["qkv_bias"] or fields["init_values"]
        ),
        "it has a norm before the blocks and pools by attention, as in Perception Encoder's "
        "vit_pe_core_* (rotary positions)": fields["pre_norm"] and fields["global_pool"] == "map",
    }
    for what, is_so in seen.items():
        if is_so:
            raise UserError(
                f"the file may be another architecture's than a plain ViT's: {what}; give the name "
                "of its model, or its config.json."
            )

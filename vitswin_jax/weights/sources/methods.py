"""Self-supervised methods that a file with timm's names of a ViT shows, and their changes.

Their encoders look like every other ViT. What training leaves beside them, heads and predictors,
shows whose code computes with them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitswin_jax.weights import resize
from vitswin_jax.weights.formats.tensors import Tensors
from vitswin_jax.weights.sources.source import Source


@dataclass(frozen=True)
class Method:
    """A self-supervised method, by its own code."""

    name: str
    mark: str
    """An expression; a file is of the method where it fits the full name of a tensor."""
    pos_embed: resize.Method | None = None
    """How its code resizes position embeddings; None: as timm's."""
    heads: Mapping[int, int] = field(default_factory=dict)
    """Width to heads, where timm's models of the width have others."""

    def applied_to(self, source: Source) -> Source:
        """Returns the source with the resizing of the method's own code."""
        if self.pos_embed is None or source.name != "timm":
            return source
        return dataclasses.replace(source, pos_embed=self.pos_embed)

    def hints(self, tensors: Tensors) -> Mapping[str, Any]:
        """Returns the fields that the method decides for a model, by its tensors."""
        patches = tensors.get("patch_embed.proj.weight")
        width = 0 if patches is None else patches.shape[0]
        return {"embed_dim": width, "num_heads": self.heads[width]} if width in self.heads else {}


METHODS = (
    # facebookresearch/dino and bytedance/ibot: interpolate_pos_encoding of vision_transformer.py
    Method("dino", r"(.*\.)?head\.last_layer\.weight_[gv]", resize.bicubic_by_scale),
    # facebookresearch/moco-v3: vits.py; its ViT-S has 12 heads
    Method(
        "moco",
        r"(.*\.)?(base|momentum)_encoder\.head\.[0-9]+\.weight",
        heads={384: 12},
    ),
    # facebookresearch/ijepa and msn: interpolate_pos_encoding, by the square root of n / N
    Method("ijepa", r"(.*\.)?predictor_embed\.weight", resize.bicubic),
    Method("msn", r"(.*\.)?fc\.fc1\.weight", resize.bicubic),
    # facebookresearch/mae: util/pos_embed.py, by size
    Method("mae", r"(.*\.)?decoder_blocks\.0\.attn\.qkv\.weight", resize.bicubic),
)


SMALL = "vit_small"
"""What training scripts state of ViT-S. MoCo v3's main_lincls.py leaves no other trace."""


def find_method(names: Iterable[str]) -> Method | None:
    """Returns the method that the names of a file's tensors show, None where they show none."""
    names = list(names)
    return next((m for m in METHODS if any(re.fullmatch(m.mark, n) for n in names)), None)

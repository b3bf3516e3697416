"""One table of the facts about each parameter; `facts` looks up a path."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from jax.sharding import PartitionSpec as P

PROJECTIONS = "distill"
"""Root of the parameters that distillation trains beside a model's; no weights file has them."""


class Facts(NamedTuple):
    """Facts about a parameter for optimizers, the mesh, adapters and int8."""

    pattern: str
    """Regular expression of the end of its path, from a whole name on: `mlp/fc1/kernel`."""
    mesh: P = P()
    """The mesh axis of each of its axes in loop layout; the axes left out are whole on each device.

    `fsdp` divides channels of the residual stream (ZeRO, arXiv:1910.02054, stage 3). `tensor`
    divides heads and hidden channels, so that two layers need one sum (Megatron-LM,
    arXiv:1909.08053, section 3), and experts.
    """
    decay: float = 0.0
    """Factor of the weight decay: 1 for kernels, as in all originals."""
    matrix: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """(axes that a product sums over, axes of the output), counted from the end.

    Each of the other axes holds matrices of its own: stacked blocks, experts, the heads of
    Swin-MLP, and query, key and value, whose columns are all heads'.
    """
    uses: tuple[str, ...] = ()
    """Those of "muon", "lora" and "int8" that take it as this matrix.

    Muon is for hidden layers, as its author says; all else is Adam's. LoRA adapts the matrices of
    attention, MLPs and mergings. int8 leaves small matrices out.
    """

    def inputs(self, use: str) -> int | None:
        """Returns how many axes, the leading ones of a block, are inputs; None if not for `use`."""
        return len(self.matrix[0]) if self.matrix and use in self.uses else None


_MATRIX = ((-2,), (-1,))
_EACH = ("muon", "lora", "int8")

PARAMETERS: tuple[Facts, ...] = (
    Facts(r"attn(_pool)?/(qkv|kv)/kernel",  # (c, 3, heads, d)
          P("fsdp", None, "tensor"), 1.0, ((-4,), (-2, -1)), _EACH),
    Facts(r"attn_pool/q/kernel", P("fsdp", "tensor"), 1.0, ((-3,), (-2, -1)), _EACH),
    Facts(r"attn(_pool)?/proj/kernel",  # (heads, d, c)
          P("tensor", None, "fsdp"), 1.0, ((-3, -2), (-1,)), _EACH),
    Facts(r"mlp/fc1/kernel", P("fsdp", "tensor"), 1.0, _MATRIX, _EACH),  # (c, f)
    Facts(r"mlp/fc2/kernel", P("tensor", "fsdp"), 1.0, _MATRIX, _EACH),  # (f, c)
    Facts(r"(downsample/reduction|pre_logits)/kernel", P("fsdp"), 1.0, _MATRIX, _EACH),
    Facts(r"mlp/fc1_kernel", P("tensor", "fsdp"), 1.0, _MATRIX, ("muon",)),  # (e, c, f)
    Facts(r"mlp/fc2_kernel", P("tensor", None, "fsdp"), 1.0, _MATRIX, ("muon",)),  # (e, f, c)
    Facts(r"spatial_mlp/kernel", P("tensor"), 1.0, _MATRIX, ("muon",)),  # (heads, n, n)
    Facts(r"head(_dist)?/kernel", P("fsdp"), 1.0, _MATRIX, ("int8",)),  # (c, k), for any k
    Facts(r"patch_embed/proj/kernel",  # (h, w, 3, c)
          P(None, None, None, "fsdp"), 1.0, ((-4, -3, -2), (-1,)), ("int8",)),
    Facts(r"patch_embed/stem/conv_\d+/kernel",  # (3, 3, c, d)
          P(None, None, None, "fsdp"), 1.0, ((-4, -3, -2), (-1,)), ("muon",)),
    Facts(r"(root_conv|downsample_conv|conv\d)/kernel", P(None, None, None, "fsdp"), 1.0),
    Facts(r"decoder/(embed|pred)/kernel", P("fsdp"), 1.0),  # MAE's, (c, k)
    Facts(r"decoder/kernel", P(None, None, "fsdp"), 1.0),  # SimMIM's, (1, 1, c, k)
    Facts(r"(patch_)?projection/(hidden_\d|bottleneck|prototypes)/kernel",  # DINO's, (c, k)
          P("fsdp"), 1.0),
    Facts(rf"{PROJECTIONS}/\w+/kernel", P("fsdp"), 1.0),  # (c, teacher's c)
    Facts(r"router/kernel", decay=1.0),
    Facts(r"router/(proj/kernel|sim_matrix|temperature)"),  # Swin-MoE's cosine router
    Facts(r"cpb_mlp/(fc[12]/kernel|fc1/bias)"),  # Swin V2's position biases
    Facts(r"lora_[ab]", decay=1.0),
    Facts(r"attn(_pool)?/(qkv|kv)/bias", P(None, "tensor")),
    Facts(r"attn_pool/q/bias", P("tensor")),
    Facts(r"attn/([qkv]_bias|logit_scale)", P("tensor")),  # (heads, ...)
    Facts(r"rope_freqs", P(None, "tensor")),  # (2, heads, d / 2)
    Facts(r"relative_position_bias_table", P(None, "tensor")),  # (offsets, heads)
    Facts(r"(mlp/fc1|spatial_mlp)/bias", P("tensor")),
    Facts(r"mlp/fc[12]_bias", P("tensor")),  # of experts
    Facts(r"(absolute_)?pos_embed", P(None, None, "fsdp")),  # (1, n, c)
    Facts(r"(cls|dist|reg|mask)_token|latent|pos_embed_[xy]"),
    Facts(r"scale|gamma"),
    # Biases of the residual stream's channels; those of heads and hidden channels are above.
    Facts(r"(?!(qkv|kv|q|fc1|spatial_mlp)/)\w+/bias"),
)  # fmt: skip


def _rows(path: str) -> list[Facts]:
    return [row for row in PARAMETERS if re.fullmatch(rf"(?:.*/)?(?:{row.pattern})", path)]


@functools.cache
def facts(path: str) -> Facts:
    """Returns the one row of `PARAMETERS` for a path such as `block_3/attn/qkv/kernel`.

    Paths of stacked blocks have the same rows. Raises ValueError if there is not exactly one.
    """
    rows = _rows(path)
    if len(rows) != 1:
        fits = ", ".join(repr(row.pattern) for row in rows) or "no row"
        raise ValueError(f"{fits} of nn.params.PARAMETERS covers {path}; it needs one row.")
    return rows[0]


def uncovered(paths: Iterable[str]) -> list[str]:
    """Returns the paths that no row covers."""
    return [path for path in paths if not _rows(path)]

"""Muon on our parameters: which are matrices, and along which axes."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from vitswin_jax.core.types import Params
from vitswin_jax.train.optim.groups import path_of

# (pattern of the whole path, (axes summed over, axes of the output), or None: by Adam), the first
# that matches. Axes count from the end, and all others hold matrices of their own: stacked blocks,
# experts, the heads of Swin-MLP, and query, key and value, each of which is a matrix whose columns
# are all heads'. As its author says, hidden layers alone; the rest is Adam's.
MUON_RULES: tuple[tuple[str, tuple[tuple[int, ...], tuple[int, ...]] | None], ...] = (
    (r"(encoder/)?(patch_embed|backbone|head|head_dist)/.*", None),
    (r"decoder/((embed|pred)/)?kernel", None),
    (r".*(cpb_mlp|router)/.*", None),
    (r"(.*/)?(attn/qkv|attn_pool/kv)/kernel", ((-4,), (-2, -1))),
    (r"attn_pool/q/kernel", ((-3,), (-2, -1))),
    (r"(.*/)?(attn|attn_pool)/proj/kernel", ((-3, -2), (-1,))),
    (r"(.*/)?(mlp/fc[12]|reduction|pre_logits|spatial_mlp)/kernel", ((-2,), (-1,))),
    (r"(.*/)?fc[12]_kernel", ((-2,), (-1,))),
    (r".*kernel", ()),  # none of the above: raises
    (r".*", None),
)


def matrix_axes(params: Params) -> Params:
    """Returns a tree of each matrix's axes, None for what is Adam's.

    Raises ValueError for a kernel that no rule covers.
    """

    def axes(path: tuple[Any, ...], _: Any) -> MuonDimensionNumbers | None:
        name = path_of(path)
        found = next(axes for pattern, axes in MUON_RULES if re.fullmatch(pattern, name))
        if found == ():
            raise ValueError(f"no rule of MUON_RULES covers {name}.")
        return None if found is None else MuonDimensionNumbers(*found)

    return jax.tree_util.tree_map_with_path(axes, params)


def muon_directions(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum_dtype: str = "float32",
    consistent_rms: float | None = None,
) -> optax.GradientTransformation:
    """Returns optax's Muon without rate and decay; `b1` and `b2` are Adam's, on all else."""
    return optax.chain(
        muon(
            1.0,
            beta=momentum,
            eps=eps,
            mu_dtype=momentum_dtype,
            nesterov=nesterov,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=matrix_axes,
            consistent_rms=consistent_rms,
        ),
        optax.scale(-1.0),
    )

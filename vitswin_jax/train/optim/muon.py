"""Muon on our parameters: which are matrices, and along which axes."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from vitswin_jax.core.types import Params
from vitswin_jax.nn.params import facts
from vitswin_jax.train.optim.groups import path_of


def matrix_axes(params: Params) -> Params:
    """Returns a tree of each matrix's axes, and None where Adam updates a parameter.

    Raises ValueError for a parameter that `nn.params` does not cover.
    """

    def axes(path: tuple[Any, ...], _: Any) -> MuonDimensionNumbers | None:
        row = facts(path_of(path))
        return MuonDimensionNumbers(*row.matrix) if "muon" in row.uses and row.matrix else None

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

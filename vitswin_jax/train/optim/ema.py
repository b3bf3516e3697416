"""Exponential moving average (EMA) of the parameters, which evaluation may use."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitswin_jax.core.types import Params, UserError


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of the parameters (Polyak and Juditsky, 1992; DeiT: 0.99996).

    With `warmup` step n, from 0, decays by min(decay, (1 + n) / (10 + n)), as TensorFlow's does, so
    that a short run is not all beginning. Raises UserError for a decay outside [0, 1).
    """

    decay: float
    warmup: bool = False
    evaluate: bool = True
    """Whether the average is what is evaluated and saved, and not the parameters."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"ema.decay={self.decay} must be in [0, 1), such as 0.9999.")

    def update(self, average: Params, params: Params, step: Int[Array, ""]) -> Params:
        """Returns the average after `step`; parameters equal to it leave it bit-equal."""
        share = self.share(step)
        return jax.tree.map(lambda mean, new: mean + share * (new - mean), average, params)

    def share(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns how much of the new parameters a step takes: one less its decay."""
        share = jnp.float32(1.0 - self.decay)  # subtracted in double precision
        if not self.warmup:
            return share
        return jnp.maximum(share, 9.0 / (10.0 + step.astype(jnp.float32)))


@dataclass(frozen=True)
class Momentum(Ema):
    """The average that is a teacher (DINO, arXiv:2104.14294): its decay rises to 1, as a cosine.

    In step n of `total_steps` it is 1 - (1 - decay) (1 + cos(pi n / total_steps)) / 2.
    """

    total_steps: int = 1

    def share(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns how much of the new parameters a step takes: one less its decay."""
        done = jnp.minimum(step.astype(jnp.float32) / self.total_steps, 1.0)
        return jnp.float32(1.0 - self.decay) * (1.0 + jnp.cos(jnp.pi * done)) / 2


def make_ema(*, decay: float | None, warmup: bool, evaluate: bool) -> Ema | None:
    """Returns the average that `config.ema` asks for, None where it has no decay."""
    return None if decay is None else Ema(decay, warmup, evaluate)

"""Swin-MoE: Swin with a mixture of expert MLPs in every second block of its late stages.

Tutel (arXiv:2206.03382, section 5) and the official code, models/swin_transformer_moe.py. Axes: b
batch, n tokens of an image, e experts, s an expert's places (its capacity), c channels, f hidden.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.choices import Faults, wrong_choice
from vitswin_jax.models.swin import Swin
from vitswin_jax.models.swinv2 import CpbAttention
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.mlp import activation
from vitswin_jax.nn.sides import Size

CAPACITIES = ("image", "batch")
ROUTERS = ("linear", "cosine")
ROUTING = ("num_experts", "capacity_factor", "capacity_over", "router", "balance", "gate_noise")
"""Fields of `SwinMoe` that its `MoeMlp`s have too."""
BALANCES = ("load_importance", "gshard")


def expert_capacity(tokens: int, experts: int, *, capacity_factor: float) -> int:
    """Returns how many of the tokens each expert takes."""
    return max(1, int(capacity_factor * math.ceil(tokens / experts)))


def route(scores: Float[Array, "b n e"], *, capacity: int) -> Float[Array, "b n e s"]:
    """Assigns each token a place with its expert: one-hot over (e, s), or zero where none is left.

    A token's expert is that of its highest score. Where an expert is chosen by more than `capacity`
    tokens it takes those that are surest of it (batch prioritized routing, arXiv:2106.05974,
    section 4).
    """
    chosen = jax.nn.one_hot(scores.argmax(-1), scores.shape[-1])  # b n e
    order = jnp.argsort(-scores.max(-1), axis=1, stable=True)
    in_order = jnp.take_along_axis(chosen, order[..., None], 1)
    before = (jnp.cumsum(in_order, axis=1) - in_order) * in_order
    place = jnp.take_along_axis(before.sum(-1), jnp.argsort(order, axis=1), 1)  # b n
    # one_hot of a place beyond the capacity is zero: the token is left to the shortcut.
    places = jax.nn.one_hot(place.astype(jnp.int32), capacity)
    return chosen[..., None] * places[:, :, None, :]


def gshard_loss(scores: Float[Array, "b n e"]) -> Float[Array, ""]:
    """Returns e Σ (an expert's share of the tokens) (its mean score) (GShard, section 2.2).

    It is 1 where the load is even, and at most e.
    """
    experts = scores.shape[-1]
    share = jax.nn.one_hot(scores.argmax(-1), experts).mean((0, 1))
    return experts * (share * scores.mean((0, 1))).sum()


def load_importance_loss(
    logits: Float[Array, "b n e"], noisy: Float[Array, "b n e"], *, noise: float
) -> Float[Array, ""]:
    """Returns the mean squared coefficient of variation of importance and load over the experts.

    Sparsely-gated MoE (arXiv:1701.06538, section 4 and appendix A) as Tutel computes it, whose
    load is the chance that an expert's probability, not its logit, would with noise of deviation
    `noise` pass the chosen expert's noisy logit. It is 0 where both are even.
    """
    probabilities = jax.nn.softmax(logits)
    load = jax.scipy.stats.norm.cdf(probabilities - noisy.max(-1, keepdims=True), scale=noise)

    def variation(x: Array) -> Array:
        total = x.sum((0, 1))
        return total.var(ddof=1) / (total.mean() ** 2 + 1e-10)

    return (variation(probabilities) + variation(load)) / 2


class CosineRouter(nn.Module):
    """Logits by the angle between a projected token and each expert's vector (arXiv:2204.09179).

    Parameters: `proj`, the experts' vectors `sim_matrix` (256, e), and `temperature` (1,), the log
    of a factor of at most 100.
    """

    num_experts: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n e"]:
        """Returns the logits, float32."""
        x = nn.Dense(256, dtype=jnp.float32, name="proj")(x)
        shape = (256, self.num_experts)
        experts = self.param("sim_matrix", nn.initializers.normal(0.01), shape, jnp.float32)
        init = nn.initializers.constant(math.log(1 / 0.5))
        temperature = self.param("temperature", init, (1,), jnp.float32)
        cosines = jnp.einsum("bnp,pe->bne", _unit(x, axis=-1), _unit(experts, axis=0))
        return cosines * jnp.exp(jnp.minimum(temperature, math.log(100)))[None, None]


def _unit(x: Array, *, axis: int) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-12)


class MoeMlp(nn.Module):
    """A router and `num_experts` MLPs, of which each token is sent to one (Switch, section 2.1).

    The experts' parameters have a leading axis e, which may lie on many devices. The balance loss
    is sown as "moe" in the collection "losses".
    """

    num_experts: int
    hidden_dim: int
    capacity_factor: float
    capacity_over: str
    router: str
    balance: str
    gate_noise: float
    act: str
    drop_rate: float
    use_out_bias: bool
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Returns each token's expert's output times its score; 0 where it had no place."""
        tokens = x.reshape(1 if self.capacity_over == "batch" else x.shape[0], -1, x.shape[-1])
        logits = self._router()(tokens.astype(jnp.float32))
        noisy = logits
        if train and self.gate_noise:
            noise = jax.random.normal(self.make_rng("dropout"), logits.shape)
            noisy = logits + self.gate_noise / self.num_experts * noise
        scores = jax.nn.softmax(noisy)
        if not self.is_initializing():
            self.sow("losses", "moe", self._balance(logits, noisy))
        capacity = expert_capacity(
            tokens.shape[1], self.num_experts, capacity_factor=self.capacity_factor
        )
        places = route(scores, capacity=capacity)
        gates = (scores * places.sum(-1)).sum(-1)  # b n
        sent = jnp.einsum("bnes,bnc->ebsc", places.astype(self.dtype), tokens.astype(self.dtype))
        out = self._experts(sent, train=train)
        out = jnp.einsum("bnes,ebsc->bnc", places.astype(self.dtype), out)
        return (out * gates[..., None].astype(self.dtype)).reshape(x.shape)

    def _router(self) -> nn.Module:
        """Returns the router; float32, for in bfloat16 many tokens' experts would be others."""
        if self.router == "cosine":
            return CosineRouter(self.num_experts, name="router")
        return nn.Dense(
            self.num_experts,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=jnp.float32,
            name="router",
        )

    def _balance(self, logits: Array, noisy: Array) -> Array:
        if self.balance == "gshard":
            return gshard_loss(jax.nn.softmax(noisy))
        return load_importance_loss(logits, noisy, noise=self.gate_noise / self.num_experts)

    def _experts(self, x: Float[Array, "e b s c"], *, train: bool) -> Float[Array, "e b s c"]:
        e, c, f = self.num_experts, x.shape[-1], self.hidden_dim

        def param(name: str, *shape: int) -> Array:
            init = self.kernel_init if "kernel" in name else nn.initializers.zeros_init()
            return self.param(name, init, shape, jnp.float32).astype(self.dtype)

        x = jnp.einsum("ebsc,ecf->ebsf", x, param("fc1_kernel", e, c, f))
        x = activation(self.act)(x + param("fc1_bias", e, f)[:, None, None])
        x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
        x = jnp.einsum("ebsf,efc->ebsc", x, param("fc2_kernel", e, f, c))
        return x + param("fc2_bias", e, c)[:, None, None] if self.use_out_bias else x


class SwinMoe(Swin):
    """Swin-MoE; what `Swin` has, and the experts of the second block of each pair in `moe_stages`.

    `num_experts` MLPs each, with `capacity_factor` times the places that an even load needs,
    counted over an image's tokens, so that what an image gives does not depend on the others, or,
    as the official code does, over all of a batch (`capacity_over`). `router` is "linear" or
    "cosine"; `gate_noise` over num_experts is the deviation of what is added to its logits in
    training; `balance` is the loss that evens the load, "load_importance" or "gshard".
    `moe_drop_rate` is within the experts; `mlp_out_bias` is of every MLP's second layer.
    """

    img_size: int | tuple[int, int] = 192
    window_size: int | tuple[int, int] | tuple[tuple[int, int], ...] = 12
    init_std: float = 0.005
    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)
    moe_stages: tuple[int, ...] = (2, 3)
    num_experts: int = 32
    capacity_factor: float = 1.25
    capacity_over: str = "image"
    router: str = "linear"
    balance: str = "load_importance"
    gate_noise: float = 1.0
    moe_drop_rate: float = 0.1
    mlp_out_bias: bool = False

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        super().check()
        faults = Faults()
        if len(self.pretrained_window_sizes) != len(self.depths):
            faults.append(f"pretrained_window_sizes must have {len(self.depths)} entries")
        if self.num_experts < 1 or self.capacity_factor <= 0:
            faults.append("num_experts must be at least 1 and capacity_factor more than 0")
        choices = {"capacity_over": CAPACITIES, "router": ROUTERS, "balance": BALANCES}
        for field, known in choices.items():
            faults += wrong_choice(field, getattr(self, field), known)
        if self.balance == "load_importance" and self.gate_noise <= 0:
            faults.append("balance='load_importance' needs gate_noise above 0")
        if not set(self.moe_stages) <= set(range(len(self.depths))):
            faults.append(f"moe_stages={self.moe_stages} must be among 0 to {len(self.depths) - 1}")
        faults.check()

    def _attention(self, stage: int, window: Size) -> Callable[..., nn.Module]:
        return functools.partial(
            CpbAttention,
            num_heads=self.num_heads[stage],
            options=self._options,
            window_size=window,
            pretrained_window_size=pair(self.pretrained_window_sizes[stage]),
        )

    def _mlp(self, stage: int, *, shifted: bool) -> Callable[..., nn.Module]:
        dense = super()._mlp(stage, shifted=shifted)
        if not (shifted and stage in self.moe_stages):
            return functools.partial(dense, use_out_bias=self.mlp_out_bias)
        return functools.partial(
            MoeMlp,
            **{field: getattr(self, field) for field in ROUTING},
            hidden_dim=self._mlp_dim(stage),
            act=self.act,
            drop_rate=self.moe_drop_rate,
            use_out_bias=self.mlp_out_bias,
            kernel_init=self._kernel_init,
            dtype=self.dtype,
        )

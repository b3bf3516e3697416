"""Parts of the blocks of all families: options, self-attention, residual branches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.nn import xla
from vitswin_jax.nn.attention import MASKED, attend, goes_plain, sow_weights
from vitswin_jax.nn.execution import Execution, Sequences
from vitswin_jax.nn.layers import (
    NORMS,
    DropPath,
    JointLinear,
    LayerNorm,
    LayerScale,
    Linear,
)
from vitswin_jax.nn.mlp import Mlp
from vitswin_jax.nn.rotary import Rotation

NORM_PLACES = ("before", "after", "both")
QKV_BIASES = (False, True, "q", "k", "v", "qk", "qv", "kv")


@dataclass(frozen=True)
class BlockOptions:
    """The options that all blocks of a model share, each named as the model's field.

    A new option of blocks is one field here, of the same name as the model's.
    """

    qkv_bias: bool | str = True  # a text: only of these, each a parameter of its own
    qk_norm: bool = False  # of each head's queries and keys
    scale_attn_norm: bool = False  # of what the attention's projection reads
    proj_bias: bool = True
    mlp_bias: bool = True
    scale_mlp_norm: bool = False  # of what the MLP's second layer reads
    init_values: float | None = None  # of LayerScale; None: no LayerScale
    act: str = "gelu"
    norm_layer: str = "layernorm"
    norm_at: str = "before"  # a branch's norm: `NORM_PLACES`
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    mask_value: float = MASKED
    attn_impl: str = "auto"
    kernel_init: nn.initializers.Initializer | None = None  # None: Xavier's, by each product's fans
    dtype: DTypeLike = jnp.float32

    @classmethod
    def of(cls, model: nn.Module, **others: Any) -> BlockOptions:
        """Returns the options of a model's blocks: its fields of these names, and `others`."""
        names = {f.name for f in dataclasses.fields(cls)} & {
            f.name for f in dataclasses.fields(model)
        }
        return cls(**{name: getattr(model, name) for name in names} | others)

    def norm(self, name: str | None = None, **fields: Any) -> LayerNorm | nn.RMSNorm:
        """Creates a norm of the model's kind."""
        return NORMS[self.norm_layer](self.norm_eps, self.dtype, name=name, **fields)

    def mlp(self, hidden_dim: int, name: str) -> Mlp:
        """Creates the MLP of a block."""
        return Mlp(
            hidden_dim,
            self.act,
            self.drop_rate,
            use_bias=self.mlp_bias,
            norm_eps=self.norm_eps if self.scale_mlp_norm else None,
            norm_layer=self.norm_layer,
            dtype=self.dtype,
            name=name,
        )

    @property
    def execution(self) -> Execution:
        """The implementation of attention."""
        return Execution(self.attn_impl)

    def sequences(
        self,
        model: nn.Module,
        x: Float[Array, "b n c"],
        num_heads: int,
        *,
        biased: bool,
        train: bool,
    ) -> Sequences:
        """Returns how the blocks of `model` attend to sequences such as x."""
        return self.execution.sequences(
            plain=goes_plain(model),
            dtype=jnp.dtype(self.dtype).name,
            tokens=x.shape[1],
            head_dim=x.shape[-1] // num_heads,
            biased=biased,
            dropout=train and self.attn_drop_rate > 0,
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second-last axis (Transformer, section 3.2).

    Parameters: `qkv` kernel (c, 3, heads, d) in the order query, key, value, and bias (3, heads,
    d), or `q_bias`, `k_bias` and `v_bias` (heads, d), those that `qkv_bias` names; `proj` kernel
    (heads, d, c) and bias (c,). A family with position biases overrides `position_bias`; one with
    another similarity than q·k/√d overrides `prepare`. Where intermediates are mutable, the module
    sows its weights (`attention.sow_weights`) and its biases ("position_bias", (heads, n, n)).
    """

    num_heads: int
    options: BlockOptions = BlockOptions()

    @property
    def normalizes(self) -> bool:
        """Whether `prepare` does more than scale by 1/√d."""
        return self.options.qk_norm

    def position_bias(self) -> Float[Array, "heads n n"] | None:
        """Returns the summand of every logit, or None."""
        return None

    def prepare(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Returns (*batch, heads, n, d) arrays such that q·k is the logit: q/√d, k and v."""
        if self.options.qk_norm:
            q, k = self.options.norm("q_norm")(q), self.options.norm("k_norm")(k)
        return q * q.shape[-1] ** -0.5, k, v

    def __call__(
        self,
        x: Float[Array, "*batch n c"],
        mask: np.ndarray | Array | None = None,
        *,
        bias: Float[Array, "heads n n"] | None = None,
        rotation: Rotation | None = None,
        attend: Callable[..., Array] = attend,
        train: bool,
    ) -> Float[Array, "*batch n c"]:
        """Mixes tokens; `mask`, broadcast to (*batch, n, n), is True where a pair may attend.

        `bias` is the summand of the logits; None means the module's own `position_bias`.
        `rotation` turns queries and keys. `attend` is `attention.attend` or its equal.
        """

        def mix(qkv: Array) -> Array:
            own = self.position_bias() if bias is None else bias
            return self.attend(qkv, own, mask, rotation=rotation, attend=attend, train=train)

        return self.project(x, mix, train=train)

    def attend(
        self,
        qkv: Float[Array, "3 *batch heads n d"],
        bias: Float[Array, "heads n n"] | None,
        mask: np.ndarray | Array | None,
        *,
        rotation: Rotation | None = None,
        attend: Callable[..., Array] = attend,
        train: bool,
    ) -> Float[Array, "*batch heads n d"]:
        """Returns softmax(q kᵀ/√d + bias) v, with `mask_value` added where `mask` is False."""
        q, k, v = self.prepare(*qkv)
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        biases: tuple[Array, ...] = () if bias is None else (bias,)
        for by_position in biases:
            self.sow("intermediates", "position_bias", by_position)
        if mask is not None:
            masked = jnp.where(mask, 0.0, self.options.mask_value).astype(jnp.float32)
            biases += (masked[..., None, :, :],)
        sow_weights(self, q, k, biases=biases)
        rate = self.options.attn_drop_rate if train else 0.0
        dropout = nn.Dropout(rate, deterministic=False) if rate else None
        return attend(q, k, v, biases=biases, dropout=dropout)

    @nn.compact
    def project(
        self,
        x: Float[Array, "*tokens c"],
        mix: Callable[[Any], Array],
        *,
        layout: str = "heads_first",
        train: bool,
    ) -> Float[Array, "*mixed c"]:
        """Projects x to queries, keys and values, applies `mix`, and projects its result back.

        `mix` maps (3, *batch, heads, n, d) to (*batch, heads, m, d). With `layout` "tokens_first"
        it maps (*batch, n, 3, heads, d) to (*batch, m, heads, d); with "apart" the same in three
        arrays (*batch, n, heads, d).
        """
        c, heads, init = x.shape[-1], self.num_heads, self.options.kernel_init
        xavier = nn.initializers.xavier_uniform
        linear = (
            JointLinear if layout == "apart" else functools.partial(Linear, equation=QKV[layout])
        )
        qkv = linear(
            shape=(c, 3, heads, c // heads),
            use_bias=self.options.qkv_bias is True,
            # One matrix for three projections; each is initialised by its own fans (batch_axis).
            kernel_init=init or xavier(in_axis=0, out_axis=(2, 3), batch_axis=(1,)),
            dtype=self.options.dtype,
            name="qkv",
        )
        mixed = mix(qkv(x, bias=self._own_biases(c // heads), train=train))
        heads_first = layout == "heads_first"
        if self.options.scale_attn_norm:
            mixed = jnp.moveaxis(mixed, -3, -2) if heads_first else mixed
            channels = mixed.reshape(*mixed.shape[:-2], -1)  # of all heads together
            mixed, heads_first = self.options.norm("norm")(channels).reshape(mixed.shape), False
        out = Linear(
            (heads, c // heads, c),
            "...hnd,hdc->...nc" if heads_first else "...nhd,hdc->...nc",
            use_bias=self.options.proj_bias,
            kernel_init=init or xavier(in_axis=(0, 1), out_axis=2),
            dtype=self.options.dtype,
            name="proj",
        )(mixed, train=train)
        return nn.Dropout(self.options.drop_rate, deterministic=not train)(out)

    def _own_biases(self, head_dim: int) -> Float[Array, "3 heads d"] | None:
        """Returns the biases of those projections that `qkv_bias` names, 0 for the others."""
        named, shape = self.options.qkv_bias, (self.num_heads, head_dim)
        if not isinstance(named, str):
            return None
        learned = {part: self.param(f"{part}_bias", nn.initializers.zeros, shape) for part in named}
        return jnp.stack([learned.get(part, jnp.zeros(shape)) for part in "qkv"])


QKV = {"heads_first": "...nc,cthd->t...hnd", "tokens_first": "...nc,cthd->...nthd"}
"""The equation of the joint projection, by the layout of its outputs."""


class ResidualBlock(nn.Module):
    """A block whose branches are added to a residual stream, each with stochastic depth.

    A family's block inherits `norm` and `add`, and with them what makes both fast on each backend.
    """

    options: BlockOptions

    def norm(self, name: str, **fields: Any) -> LayerNorm | nn.RMSNorm:
        """Creates a norm called `name`."""
        return self.options.norm(name, **fields)

    def branch(
        self,
        x: Float[Array, "*shape"],
        function: Callable[[Array], Array],
        drop_path: float | Float[Array, ""],
        *,
        number: int,
        train: bool,
    ) -> Float[Array, "*shape"]:
        """Returns x plus a branch, `function` of x, between the norms that `norm_at` asks for.

        Parameters: `norm` or, before and after, `norm` and `post_norm`, and LayerScale's `ls`,
        each with the branch's `number`.
        """
        options, place = self.options, self.options.norm_at
        y = function(x if place == "after" else self.norm(f"norm{number}")(x))
        if place != "before":
            y = self.norm(f"norm{number}" if place == "after" else f"post_norm{number}")(y)
        if options.init_values is not None:
            y = LayerScale(options.init_values, dtype=options.dtype, name=f"ls{number}")(y)
        return self.add(x, y, drop_path, train=train)

    def add(
        self,
        x: Float[Array, "*shape"],
        branch: Float[Array, "*shape"],
        drop_path: float | Float[Array, ""],
        *,
        train: bool,
    ) -> Float[Array, "*shape"]:
        """Returns x + branch, the branch dropped for whole examples with rate `drop_path`."""
        return xla.store_gradient(x + DropPath()(branch, drop_path, train=train))

"""Self-attention: the module the families share, and the one place that chooses the kernel.

Layout is heads first, (..., heads, tokens, head_dim): the two products are then plain batched
matrix products, and axes before the heads (batch, windows) need no name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.linear import Linear
from vitswin_jax.nn.windows import Cut, Size, biases_in_pairs, pad_to_multiple

Dropout = Callable[[Array], Array]

MASKED = -100.0
"""What a pair that may not attend has added to its logit: Swin's own value, and not -inf, for with
Swin V2's logits of up to 100 the difference shows."""


LONG = 512
"""Tokens from which on a CPU does better with few heads at a time: 0.45 of the time at 577 and 785
and eight images of six heads; at 197 it does worse."""
_CACHED = 8 * 2**20
"""Bytes of logits that stay in a CPU's cache while they are exponentiated and multiplied."""


def _logits(q: Array, k: Array, biases: tuple[Array, ...]) -> Array:
    logits = jnp.einsum("...qd,...kd->...qk", q, k, preferred_element_type=jnp.float32)
    for bias in biases:
        logits = logits + jnp.expand_dims(bias, range(logits.ndim - bias.ndim))
    return logits


def _attend_xla(
    q: Array, k: Array, v: Array, *, biases: tuple[Array, ...], dropout: Dropout | None
) -> Array:
    logits = _logits(q, k, biases)
    # The sum divides after the product with v: the same value, on head_dim instead of k numbers.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    if dropout is not None:
        weights = dropout(weights)
    out = jnp.einsum(
        "...qk,...kd->...qd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (out / total).astype(v.dtype)


def _attend_cudnn(
    q: Array, k: Array, v: Array, *, biases: tuple[Array, ...], dropout: Dropout | None
) -> Array:
    if biases or dropout is not None or q.ndim != 4:
        raise UserError("attn_impl='cudnn' has no biases, windows or attention dropout; use 'xla'.")
    tokens_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*tokens_first, scale=1.0, implementation="cudnn")
    return jnp.swapaxes(out, 1, 2)


def _attend_in_cache(q: Array, k: Array, v: Array) -> Array:
    """Attends as many heads of an example at a time as have logits that fit the cache.

    A backward pass computes them again, and so no weights are kept. The number of examples may be
    a symbol, as it is for jax.export.
    """

    def some(qkv: tuple[Array, Array, Array]) -> Array:
        return _attend_xla(*qkv, biases=(), dropout=None)

    heads = math.prod(q.shape[-3:-2])
    fit = max(_CACHED // (4 * q.shape[-2] * k.shape[-2]), 1)
    at_once = max(count for count in range(1, heads + 1) if heads % count == 0 and count <= fit)
    groups = tuple(x.reshape(-1, at_once, *x.shape[-2:]) for x in (q, k, v))
    out = jax.lax.map(jax.checkpoint(some, prevent_cse=False), groups)
    return out.reshape(*q.shape[:-1], v.shape[-1])


def _attend_auto(
    q: Array, k: Array, v: Array, *, biases: tuple[Array, ...], dropout: Dropout | None
) -> Array:
    at_once = functools.partial(_attend_xla, biases=biases, dropout=dropout)
    if biases or dropout is not None or k.shape[-2] < LONG:
        return at_once(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cpu=_attend_in_cache, default=at_once)


IMPLEMENTATIONS = {"auto": _attend_auto, "xla": _attend_xla, "cudnn": _attend_cudnn}


def attend(
    q: Float[Array, "*batch q d"],
    k: Float[Array, "*batch k d"],
    v: Float[Array, "*batch k d"],
    *,
    biases: tuple[Array, ...] = (),
    dropout: Dropout | None = None,
    implementation: str = "xla",
) -> Float[Array, "*batch q d"]:
    """Computes softmax(q kᵀ + Σ biases) v, with q already scaled (Transformer, eq. 1).

    Logits and softmax are float32 whatever the inputs are; each bias broadcasts to (*batch, q, k).
    `dropout` acts on the attention weights. "auto" is "xla", but on CPU and for many tokens a few
    heads at a time; both have the same numbers, to rounding. Raises UserError for an unknown
    implementation or for what the chosen one cannot do.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"attn_impl={implementation!r} is unknown; it is one of {known}.")
    return IMPLEMENTATIONS[implementation](q, k, v, biases=biases, dropout=dropout)


def _attend_map_fused(qkv: Array, bias: Array, **options: Any) -> Array:
    if jax.default_backend() != "gpu":
        raise UserError(
            f"attn_impl='fused' is a kernel for GPUs, and this is {jax.default_backend()}; use "
            "'xla', which has the same numbers."
        )
    try:
        from vitswin_jax.nn.kernels.window_attention import window_attention
    except ImportError as error:
        raise UserError(
            f"attn_impl='fused' needs Pallas's way through Triton, which jax {jax.__version__} "
            "does not have; use 'xla'."
        ) from error
    return window_attention(qkv, bias, **options)


PAIRS = "pairs"
"""The implementation that has two windows side by side as one, for TPUs: `biases_in_pairs`."""
MAP_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"fused": _attend_map_fused}
"""Those that find a map's windows themselves; they are called as `window_attention` is."""


def sow_weights(module: nn.Module, q: Array, k: Array, *, biases: tuple[Array, ...] = ()) -> None:
    """Leaves softmax(q kᵀ + Σ biases) as the module's "attention", where intermediates are mutable.

    Otherwise nothing is computed: `attend`'s kernels never form the weights. Those that are left
    are float32, (*batch, q, k), and without dropout.
    """
    if module.is_mutable_collection("intermediates"):
        module.sow("intermediates", "attention", jax.nn.softmax(_logits(q, k, biases)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second-last axis (Transformer, section 3.2).

    Parameters: `qkv` kernel (c, 3, heads, d), the rows in the order query, key, value; `proj`
    kernel (heads, d, c). A family with position biases or another similarity overrides
    `position_bias`, or `prepare` and `prepare_map`. Where intermediates are asked for, it leaves
    its weights (`sow_weights`) and, as "position_bias", what it adds by position (heads, n, n).
    """

    num_heads: int
    qkv_bias: bool = True
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    kernel_init: nn.initializers.Initializer | None = None
    attn_impl: str = "xla"
    window_size: Size | None = None  # of a family that has windows
    mask_value: float = MASKED
    dtype: DTypeLike = jnp.float32

    def position_bias(self) -> Float[Array, "heads n n"] | None:
        """Returns what is added to every logit, or None."""
        return None

    def prepare(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Makes q·k the logit: here by 1/√d on the query; each is (*batch, heads, n, d)."""
        return q * q.shape[-1] ** -0.5, k, v

    def prepare_map(
        self, qkv: Float[Array, "b h w 3 heads d"]
    ) -> tuple[Float[Array, "b h w 3 heads d"], float]:
        """Does as `prepare` with a map that is not cut; the logit is q·k times the second."""
        return qkv, qkv.shape[-1] ** -0.5

    @property
    def takes_maps(self) -> bool:
        """Whether the call is to be given maps and their `cut`, and not windows."""
        return self.attn_impl in MAP_IMPLEMENTATIONS and not self._takes_windows

    @property
    def takes_pairs(self) -> bool:
        """Whether the call is to be given windows `in_pairs`, where the map has such."""
        return self.attn_impl == PAIRS and not self._takes_windows

    @property
    def _takes_windows(self) -> bool:
        """Whether weights are asked for, which are a window's, or parameters made."""
        return self.is_initializing() or self.is_mutable_collection("intermediates")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch n c"],
        mask: np.ndarray | None = None,
        *,
        bias: Float[Array, "heads n n"] | None = None,
        cut: Cut | None = None,
        in_pairs: bool = False,
        train: bool,
    ) -> Float[Array, "*batch n c"]:
        """Mixes tokens; `mask`, broadcast to (*batch, n, n), is True where a pair may attend.

        `bias` is added to the logits besides the module's own. With `cut`, x is maps (b, h, w, c),
        and tokens are mixed in their windows; with `in_pairs`, n tokens are those of two windows.
        """
        c, heads, size = x.shape[-1], self.num_heads, x.shape[-3:-1]
        if cut is not None:
            x = pad_to_multiple(x, cut.window_size)
        tokens_first = cut is not None or not train
        # One matrix for three projections: each is initialised by its own fans (batch_axis).
        init = self.kernel_init or nn.initializers.xavier_uniform(
            in_axis=0, out_axis=(2, 3), batch_axis=(1,)
        )
        # On CPU a forward pass alone is 8 % faster where the product has the kernel's order and is
        # transposed; with a backward pass 1 % (ViT) to 5 % (Swin) slower.
        qkv = Linear(
            (c, 3, heads, c // heads),
            "...nc,cthd->...nthd" if tokens_first else "...nc,cthd->t...hnd",
            use_bias=self.qkv_bias,
            kernel_init=init,
            dtype=self.dtype,
            name="qkv",
        )(x, train=train)
        if cut is not None:
            out = self._mix_map(qkv, cut, size, train=train)
        else:
            qkv = jnp.moveaxis(qkv, (-3, -4), (0, -2)) if tokens_first else qkv
            out = self._mix(qkv, mask, bias, in_pairs=in_pairs, train=train)
        out = Linear(
            (heads, c // heads, c),
            "...hnd,hdc->...nc" if cut is None else "...nhd,hdc->...nc",
            kernel_init=self.kernel_init
            or nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2),
            dtype=self.dtype,
            name="proj",
        )(out, train=train)
        return nn.Dropout(self.proj_drop_rate, deterministic=not train)(out)

    def _mix(
        self,
        qkv: Float[Array, "3 *batch heads n d"],
        mask: np.ndarray | None,
        bias: Array | None,
        *,
        in_pairs: bool,
        train: bool,
    ) -> Float[Array, "*batch heads n d"]:
        q, k, v = self.prepare(*qkv)
        positions = self.position_bias()
        if in_pairs:
            positions = biases_in_pairs(positions, self.window_size)
        biases = tuple(b for b in (positions, bias) if b is not None)
        for by_position in biases:
            self.sow("intermediates", "position_bias", by_position)
        if mask is not None:
            biases += (jnp.where(mask, 0.0, self.mask_value).astype(jnp.float32)[..., None, :, :],)
        sow_weights(self, q, k, biases=biases)
        dropout = None
        if train and self.attn_drop_rate:
            dropout = nn.Dropout(self.attn_drop_rate, deterministic=False)
        windowed = (PAIRS, *MAP_IMPLEMENTATIONS)  # their logits, where they have windows, are XLA's
        implementation = "xla" if self.attn_impl in windowed else self.attn_impl
        return attend(q, k, v, biases=biases, dropout=dropout, implementation=implementation)

    def _mix_map(
        self, qkv: Float[Array, "b H W 3 heads d"], cut: Cut, size: Size, *, train: bool
    ) -> Float[Array, "b h w heads d"]:
        if train and self.attn_drop_rate:
            raise UserError(
                f"attn_impl={self.attn_impl!r} has no attention dropout; set attn_drop_rate to 0, "
                "or use 'xla'."
            )
        qkv, scale = self.prepare_map(qkv)
        out = MAP_IMPLEMENTATIONS[self.attn_impl](
            qkv,
            self.position_bias(),
            cut=cut,
            size=size,
            scale=scale,
            mask_value=self.mask_value,
        )
        return out[:, : size[0], : size[1]]

"""Execution of attention: the one place that maps `attn_impl` to implementations.

Every implementation returns the same numbers, to rounding, with the same parameters.

| `attn_impl` | attention of a sequence | attention in windows |
| --- | --- | --- |
| auto | the fastest, by `choices.SEQUENCES` | the fastest, by `choices.WINDOWS` |
| xla | `attention.attend` | windows cut by `windows.map_windows` |
| cudnn | cuDNN's flash attention (NVIDIA) | |
| pairs | | two adjacent windows in one matrix product (TPU) |
| fused | | one kernel that reads maps and cuts windows itself (GPU) |
| tokamax | a kernel of tokamax's (GPU), or its XLA | the same, of windows that are cut |
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitswin_jax.nn import choices, xla
from vitswin_jax.nn.attention import goes_plain
from vitswin_jax.nn.forms import forms, platform
from vitswin_jax.nn.rotary import Rotation
from vitswin_jax.nn.sides import Side, Size
from vitswin_jax.nn.windows import Cut, map_windows, pad_to_multiple

MixWindows = Callable[..., Array]
"""Called with a `block.SelfAttention`, maps (b, h, w, c), a `Cut` and `train`; returns maps."""

MULTIPLE = 8
"""Of tokens: cuDNN's backward pass refuses some odd numbers; padded to 8 it was timed."""


def flash(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b n heads d"],
    v: Float[Array, "b n heads d"],
    *,
    tokens: int,
    scale: float | None = None,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> Float[Array, "b n heads d"]:
    """Returns softmax(scale · q kᵀ) v of the first `tokens` of each sequence.

    The rest is undefined. `scale` is 1/√d by default.
    """
    lengths = None
    if tokens != q.shape[1]:
        lengths = jnp.full(q.shape[0], tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


def mix_cut(attention: nn.Module, x: Array, cut: Cut, *, train: bool) -> Array:
    """Cuts maps into windows, attends within each, and puts the windows back."""
    return map_windows(functools.partial(attention, train=train), x, cut)


def come_in_pairs(map_width: Side, window_size: Size) -> bool:
    """Returns whether a map has an even number of windows across, and a pair fits the lanes."""
    across = -(-map_width // window_size[1])
    return across % 2 == 0 and 2 * window_size[0] * window_size[1] <= choices.LANES


def biases_in_pairs(
    biases: Float[Array, "heads n n"], window_size: Size
) -> Float[Array, "heads 2*n 2*n"]:
    """Returns the biases of two adjacent windows that are cut as one of twice the width.

    Tokens are row-major. A pair of tokens from different windows has -inf, and so no weight.
    """
    height, width = window_size
    window, x = np.divmod(np.tile(np.arange(2 * width), height), width)
    token = np.repeat(np.arange(height), 2 * width) * width + x
    together = (window[:, None] == window[None, :])[None]
    return jnp.where(together, biases[:, token[:, None], token[None, :]], -np.inf)


def _mix_pairs(attention: nn.Module, x: Array, cut: Cut, *, train: bool) -> Array:
    height, width = cut.window_size
    if not come_in_pairs(x.shape[2], cut.window_size):
        return mix_cut(attention, x, cut, train=train)

    def attend_pairs(tokens: Array, mask: np.ndarray | Array | None) -> Array:
        def mix(qkv: Array) -> Array:
            bias = attention.position_bias()
            assert bias is not None  # as attention in windows has one
            biases = biases_in_pairs(bias, cut.window_size)
            return attention.attend(qkv, biases, mask, train=train)

        return attention.project(tokens, mix, train=train)

    return map_windows(attend_pairs, x, dataclasses.replace(cut, window_size=(height, 2 * width)))


def _mix_fused(
    attention: nn.Module, x: Array, cut: Cut, *, train: bool, interpret: bool = False
) -> Array:
    from vitswin_jax.nn.kernels.window_attention import window_attention

    height, width = x.shape[1:3]

    def mix(qkv: Float[Array, "b H W 3 heads d"]) -> Float[Array, "b h w heads d"]:
        qkv, scale = _prepare(attention, qkv)
        out = window_attention(
            qkv,
            attention.position_bias(),
            cut=cut,
            size=(height, width),
            scale=scale,
            mask_value=attention.options.mask_value,
            interpret=interpret,
        )
        return out[:, :height, :width]

    padded = pad_to_multiple(x, cut.window_size)
    return attention.project(padded, mix, layout="tokens_first", train=train)


def _prepare(attention: nn.Module, qkv: Array) -> tuple[Array, float]:
    """Returns queries, keys and values (..., 3, heads, d) for a kernel, and its logits' factor."""
    if not attention.normalizes:
        return qkv, qkv.shape[-1] ** -0.5
    single = jnp.moveaxis(qkv, -3, 0)[..., None, :]  # one token a row: ... heads 1 d
    return jnp.stack(attention.prepare(*single), -4)[..., 0, :], 1.0


def _mix_tokamax(attention: nn.Module, x: Array, cut: Cut, *, train: bool) -> Array:
    from vitswin_jax.nn.kernels.tokamax_attention import tokamax_attention

    def attend(tokens: Array, mask: np.ndarray | Array | None) -> Array:
        def mix(qkv: Float[Array, "b windows n 3 heads d"]) -> Float[Array, "b windows n heads d"]:
            qkv, scale = _prepare(attention, qkv)
            bias = attention.position_bias()
            if mask is not None:  # its own masks are -inf, which Swin's are not
                masked = jnp.where(mask, 0.0, attention.options.mask_value).astype(jnp.float32)
                bias = bias[None] + masked[:, None]
            q, k, v = jnp.moveaxis(qkv, -3, 0)
            return tokamax_attention(q, k, v, bias, scale=scale)

        return attention.project(tokens, mix, layout="tokens_first", train=train)

    return map_windows(attend, x, cut)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The attention of all blocks of a model on sequences of one length, chosen once."""

    implementation: str  # of `choices.SEQUENCES`
    tokens: Side

    def pad(self, x: Float[Array, "*batch n c"]) -> Float[Array, "*batch m c"]:
        """Pads tokens once for all blocks, by zeros; no token attends to those that are added."""
        if self.implementation not in PADDED or self.tokens % MULTIPLE == 0:
            return x
        room = (0, -self.tokens % MULTIPLE)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [room, (0, 0)])

    def cut(self, x: Float[Array, "*batch m c"]) -> Float[Array, "*batch n c"]:
        """Removes what `pad` has added."""
        return x if x.shape[-2] == self.tokens else x[..., : self.tokens, :]

    def mix(
        self,
        attention: nn.Module,
        x: Float[Array, "b m c"],
        *,
        bias: Array | None,
        rotation: Rotation | None = None,
        train: bool,
    ) -> Float[Array, "b m c"]:
        """Returns the tokens that `attention` has mixed, with the biases that it takes.

        `rotation` is of the tokens that were to be padded.
        """
        if rotation is not None:
            rotation = rotation.map(self.pad)
        if self.implementation not in PADDED:
            own = {"attend": xla.attend_in_cache} if self.implementation == "cached" else {}
            return attention(x, bias=bias, rotation=rotation, **own, train=train)
        attend = functools.partial(PADDED[self.implementation], tokens=self.tokens)

        def mix(qkv: Any) -> Float[Array, "b m heads d"]:
            q, k, v = qkv if isinstance(qkv, tuple) else jnp.moveaxis(qkv, 2, 0)
            if rotation is None and not attention.normalizes:
                return attend(q, k, v, bias, scale=q.shape[-1] ** -0.5)
            q, k, v = attention.prepare(*(jnp.swapaxes(part, 1, 2) for part in (q, k, v)))
            if rotation is not None:
                q, k = rotation(q), rotation(k)
            q, k, v = (jnp.swapaxes(part, 1, 2) for part in (q, k, v))
            return attend(q, k, v, bias, scale=1.0)

        layout = "apart" if forms().qkv == "apart" else "tokens_first"
        return attention.project(x, mix, layout=layout, train=train)


@dataclasses.dataclass(frozen=True)
class Execution:
    """One choice of `attn_impl`: how sequences and how windows of maps are attended to."""

    attn_impl: str = "xla"

    def sequences(self, *, tokens: Side, plain: bool, **facts: Any) -> Sequences:
        """Returns how sequences of `tokens` are attended to; `facts` are `choices.Setting`'s.

        `plain` asks for the plain way: parameters are made, and weights are sown, by it on every
        device, for kernels never form the weights.
        """
        if plain:
            return Sequences("xla", tokens)
        setting = choices.here(platform(), tokens=tokens, **facts)
        return Sequences(_decide(choices.SEQUENCES, self.attn_impl, setting), tokens)

    def mix_windows(
        self, attention: nn.Module, x: Float[Array, "b h w c"], cut: Cut, *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Returns maps whose tokens `attention` has mixed within (shifted) windows.

        The plain way where parameters are made or weights sown, as `sequences` has it.
        """
        if goes_plain(attention):
            return mix_cut(attention, x, cut, train=train)
        options = attention.options
        setting = choices.here(
            platform(),
            dtype=jnp.dtype(options.dtype).name,
            tokens=math.prod(cut.window_size),
            head_dim=x.shape[-1] // attention.num_heads,
            biased=True,
            dropout=train and options.attn_drop_rate > 0,
            paired=come_in_pairs(x.shape[2], cut.window_size),
        )
        mix = WINDOWS[_decide(choices.WINDOWS, self.attn_impl, setting)]
        return mix(attention, x, cut, train=train)


def _decide(rows: tuple[choices.Row, ...], attn_impl: str, setting: choices.Setting) -> str:
    if attn_impl == "auto":
        return choices.choose(rows, setting)
    choices.check(rows, attn_impl, setting)
    return attn_impl


def _by_cudnn(
    q: Array, k: Array, v: Array, bias: Array | None, *, scale: float, tokens: int
) -> Array:
    assert bias is None  # by `choices.FLASH`
    return flash(q, k, v, scale=scale, tokens=tokens)


def _by_tokamax(
    q: Array, k: Array, v: Array, bias: Array | None, *, scale: float, tokens: int
) -> Array:
    from vitswin_jax.nn.kernels.tokamax_attention import tokamax_attention

    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), *2 * ((0, q.shape[1] - tokens),)))
    return tokamax_attention(q, k, v, bias, scale=scale, tokens=tokens)


PADDED: dict[str, Callable[..., Array]] = {"cudnn": _by_cudnn, "tokamax": _by_tokamax}
"""Attention of sequences (b, m, heads, d) that are padded to a `MULTIPLE`, and their biases."""
WINDOWS: dict[str, MixWindows] = {
    "xla": mix_cut,
    "pairs": _mix_pairs,
    "fused": _mix_fused,
    "tokamax": _mix_tokamax,
}
FOR_SEQUENCES = ("auto", "xla", *PADDED)
FOR_WINDOWS = ("auto", *WINDOWS)

"""How attention is executed: the one place that maps `attn_impl` to implementations.

Every implementation returns the same numbers, to rounding, with the same parameters.

| `attn_impl` | attention of a sequence | attention in windows |
| --- | --- | --- |
| xla | `attention.attend` | windows cut by `windows.map_windows` |
| auto | the same; on CPU, long sequences a few heads at a time | |
| cudnn | cuDNN's flash attention (NVIDIA) | |
| pairs | | two adjacent windows in one matrix product (TPU) |
| fused | | one kernel that reads maps and cuts windows itself (GPU) |
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn import xla
from vitswin_jax.nn.attention import Dropout, attend
from vitswin_jax.nn.windows import Cut, Size, map_windows, pad_to_multiple

Attend = Callable[..., Array]
"""Called as `attention.attend` is."""
MixWindows = Callable[..., Array]
"""Called with a `block.SelfAttention`, maps (b, h, w, c), a `Cut` and `train`; returns maps."""


def _attend_cudnn(
    q: Array, k: Array, v: Array, *, biases: tuple[Array, ...], dropout: Dropout | None
) -> Array:
    if biases or dropout is not None or q.ndim != 4:
        raise UserError("attn_impl='cudnn' has no biases, windows or attention dropout; use 'xla'.")
    tokens_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*tokens_first, scale=1.0, implementation="cudnn")
    return jnp.swapaxes(out, 1, 2)


def _attend_auto(
    q: Array, k: Array, v: Array, *, biases: tuple[Array, ...], dropout: Dropout | None
) -> Array:
    if biases or dropout is not None:
        return attend(q, k, v, biases=biases, dropout=dropout)
    return xla.attend_in_cache(attend, q, k, v)


def mix_cut(attention: nn.Module, x: Array, cut: Cut, *, train: bool) -> Array:
    """Cuts maps into windows, attends within each, and puts the windows back."""
    return map_windows(functools.partial(attention, train=train), x, cut)


LANES = 128
"""Of a TPU: its memory pads the last axis of an array to a multiple of this number."""


def come_in_pairs(map_width: int, window_size: Size) -> bool:
    """Returns whether a map has an even number of windows across, and a pair fits the lanes."""
    across = -(-map_width // window_size[1])
    return across % 2 == 0 and 2 * window_size[0] * window_size[1] <= LANES


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

    def attend_pairs(tokens: Array, mask: np.ndarray | None) -> Array:
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
    if train and attention.options.attn_drop_rate:
        raise UserError(
            "attn_impl='fused' has no attention dropout; set attn_drop_rate to 0, or use 'xla'."
        )
    kernel = functools.partial(_load_kernel(interpret=interpret), interpret=interpret)
    height, width = x.shape[1:3]

    def mix(qkv: Float[Array, "b H W 3 heads d"]) -> Float[Array, "b h w heads d"]:
        qkv, scale = _prepare_map(attention, qkv)
        out = kernel(
            qkv,
            attention.position_bias(),
            cut=cut,
            size=(height, width),
            scale=scale,
            mask_value=attention.options.mask_value,
        )
        return out[:, :height, :width]

    padded = pad_to_multiple(x, cut.window_size)
    return attention.project(padded, mix, heads_first=False, train=train)


def _prepare_map(attention: nn.Module, qkv: Array) -> tuple[Array, float]:
    """Returns queries, keys and values for the kernel, and the factor of its logits."""
    if not attention.normalizes:
        return qkv, qkv.shape[-1] ** -0.5
    single = jnp.moveaxis(qkv, 3, 0)[..., None, :]  # each token by itself: b h w heads 1 d
    return jnp.stack(attention.prepare(*single), 3)[..., 0, :], 1.0


def _load_kernel(*, interpret: bool) -> Callable[..., Any]:
    if jax.default_backend() != "gpu" and not interpret:
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
    return window_attention


@dataclasses.dataclass(frozen=True)
class Execution:
    """One choice of `attn_impl`: how sequences and how windows of maps are attended to."""

    attend: Attend = attend
    windows: MixWindows = mix_cut

    def mix_windows(
        self, attention: nn.Module, x: Float[Array, "b h w c"], cut: Cut, *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Returns maps whose tokens `attention` has mixed within (shifted) windows.

        Parameters are made, and weights are sown, by the plain way on every device: kernels never
        form the weights.
        """
        plain = attention.is_initializing() or attention.is_mutable_collection("intermediates")
        return (mix_cut if plain else self.windows)(attention, x, cut, train=train)


EXECUTIONS: dict[str, Execution] = {
    "auto": Execution(_attend_auto),
    "xla": Execution(attend, mix_cut),
    "cudnn": Execution(_attend_cudnn),
    "pairs": Execution(attend, _mix_pairs),
    "fused": Execution(attend, _mix_fused),
}
FOR_SEQUENCES = ("auto", "xla", "cudnn")
FOR_WINDOWS = ("xla", "pairs", "fused")

"""Window attention on GPUs: a function with its own backward pass, and how it lies on a mesh.

XLA's way writes the shifted map, its windows and every window's logits to memory and reads them
again; the kernels of `window_kernel` do not. For the backward pass nothing is kept but what the
forward pass was given. Axes: b batch, h w the map padded to whole windows, n tokens of a window, d
channels of a head.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.choices import MOST_TOKENS
from vitswin_jax.nn.kernels.window_kernel import WindowTask, backward, forward
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import Cut


def window_attention(
    qkv: Float[Array, "b h w 3 heads d"],
    bias: Float[Array, "heads n n"],
    *,
    cut: Cut,
    size: Size,
    scale: float,
    mask_value: float,
    interpret: bool = False,
) -> Float[Array, "b h w heads d"]:
    """Computes softmax(scale q kᵀ + bias + mask) v in the windows of maps (Swin, eq. 4).

    The maps lie as images do, neither shifted nor cut, padded at the bottom and the right from
    `size` to whole windows; the pad tokens are attended to, and with `cut.pad_before_roll` shifted
    too, as `map_windows` has it. A pair that the shift alone brought together has `mask_value`
    added. Logits and softmax are float32. On a mesh, batch and heads may be divided. `interpret`
    runs the kernel's steps as ordinary JAX, on any device. Raises UserError for larger windows than
    of `MOST_TOKENS` tokens, and ValueError for shapes that do not fit.
    """
    tokens = math.prod(cut.window_size)
    if tokens > MOST_TOKENS:
        raise UserError(
            f"attn_impl='fused' takes windows of up to {MOST_TOKENS} tokens, and "
            f"{'x'.join(map(str, cut.window_size))} has {tokens}; use 'xla'."
        )
    if any(side % step for side, step in zip(qkv.shape[1:3], cut.window_size, strict=True)):
        raise ValueError(f"{cut.window_size} does not divide the map {qkv.shape[1:3]}; pad it.")
    if bias.shape != (qkv.shape[4], tokens, tokens):
        raise ValueError(f"bias is {bias.shape}, and not {(qkv.shape[4], tokens, tokens)}.")
    return _attend(qkv, bias, WindowTask(cut, size, scale, mask_value, interpret))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(qkv: Array, bias: Array, task: WindowTask) -> Array:
    return _forward(qkv, bias, task)


def _attend_forward(qkv: Array, bias: Array, task: WindowTask) -> tuple[Array, tuple[Array, Array]]:
    return _forward(qkv, bias, task), (qkv, bias)


def _attend_backward(
    task: WindowTask, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    return _backward(*residuals, cotangent, task)


_attend.defvjp(_attend_forward, _attend_backward)


def _shardings(mesh: Any, maps: Any) -> tuple[Any, tuple[NamedSharding, ...]]:
    """Returns the batch's mesh axes, and how queries, keys and values, biases and outputs lie."""
    batch, _, _, _, heads, _ = (*maps.spec, *6 * (None,))[:6]
    specs = P(batch, None, None, None, heads), P(heads), P(batch, None, None, heads)
    return batch, tuple(NamedSharding(mesh, spec) for spec in specs)


def _partition_forward(task: WindowTask, mesh: Any, arrays: Any, out: Any) -> Any:
    del out
    _, (maps, biases, mixed) = _shardings(mesh, arrays[0].sharding)
    return mesh, functools.partial(forward, task=task), mixed, (maps, biases)


def _partition_backward(task: WindowTask, mesh: Any, arrays: Any, outs: Any) -> Any:
    del outs
    batch, (maps, biases, mixed) = _shardings(mesh, arrays[0].sharding)

    def here(qkv: Array, bias: Array, cotangent: Array) -> tuple[Array, Array]:
        qkv_cotangent, bias_cotangent = backward(qkv, bias, cotangent, task)
        return qkv_cotangent, bias_cotangent if batch is None else jax.lax.psum(
            bias_cotangent, batch
        )

    return mesh, here, (maps, biases), (maps, biases, mixed)


_WHOLE = ("y", "x", "three", "d", "q", "k")
_forward = custom_partitioning(forward, static_argnums=(2,))
_forward.def_partition(
    _partition_forward,
    sharding_rule="b y x three h d, h q k -> b y x h d",
    need_replication_factors=_WHOLE,
)
_backward = custom_partitioning(backward, static_argnums=(3,))
_backward.def_partition(
    _partition_backward,
    sharding_rule="b y x three h d, h q k, b y x h d -> b y x three h d, h q k",
    need_replication_factors=_WHOLE,
)

"""The kernels of window attention on GPUs, forward and backward: Pallas, through Triton.

A program finds the tokens of a window where they lie on the map, keeps their logits in registers,
and puts the result where the queries lie. It has one head and, one
after another, every so many windows; of windows of more than 64 tokens, a block of the queries (or,
for the gradients of keys and values, of the keys). Tokens and channels are padded to powers of two
in registers only. Arrays are flat, (tokens of all maps, channels of all heads). Axes: b batch, h w
the map padded to whole windows, n tokens of a window, d channels of a head.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import Cut

_TILE = 4096  # logits that a program's four warps hold: twice as many overflow their registers
PROGRAMS = 1024  # started in all: two or three turns on what a large GPU runs at once


@dataclasses.dataclass(frozen=True)
class WindowTask:
    """The facts about a call that the arrays' shapes do not show."""

    cut: Cut
    size: Size  # the map's, before it was padded to whole windows
    scale: float
    mask_value: float
    interpret: bool


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A task on arrays of given shapes: how many of what a program has."""

    task: WindowTask
    shape: tuple[int, ...]  # of the queries, keys and values: b h w 3 heads d

    @property
    def heads(self) -> int:
        return self.shape[4]

    @property
    def channels(self) -> int:
        return self.shape[5]

    @property
    def columns(self) -> int:
        return _lanes(self.channels)

    @property
    def tokens(self) -> int:
        return math.prod(self.task.cut.window_size)

    @property
    def lanes(self) -> int:
        return _lanes(self.tokens)

    @property
    def block(self) -> int:
        """Queries (or keys) that a program has at once."""
        return min(self.lanes, _TILE // self.lanes)

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.tokens, self.block)

    @property
    def across(self) -> Size:
        """Windows of a map, down and across."""
        height, width = self.task.cut.window_size
        return self.shape[1] // height, self.shape[2] // width

    @property
    def windows(self) -> int:
        return self.shape[0] * math.prod(self.across)

    @property
    def programs(self) -> int:
        """Programs that share the windows, for each head and block."""
        return min(self.windows, pl.cdiv(PROGRAMS, self.heads * self.blocks))

    @property
    def turns(self) -> int:
        return pl.cdiv(self.windows, self.programs)


def _lanes(size: int) -> int:
    """Returns the power of two that Triton has `size` as; its products take no less than 16."""
    return max(16, pl.next_power_of_2(size))


def forward(qkv: Array, bias: Array, task: WindowTask) -> Array:
    """Returns the outputs (b, h, w, heads, d) of (b, h, w, 3, heads, d), on one device."""
    tiling = Tiling(task, qkv.shape)
    out = jax.ShapeDtypeStruct(
        (math.prod(qkv.shape[:3]), tiling.heads * tiling.channels), qkv.dtype
    )
    out = _call(_forward_kernel, tiling, out, _flat(qkv, 3), _flat(bias, 2))
    return out.reshape(*qkv.shape[:3], tiling.heads, tiling.channels)


def backward(qkv: Array, bias: Array, cotangent: Array, task: WindowTask) -> tuple[Array, Array]:
    """Returns the gradients of both, given that of the outputs; the logits are computed again."""
    tiling = Tiling(task, qkv.shape)
    flat = (_flat(qkv, 3), _flat(bias, 2), _flat(cotangent, 3))
    rows = tiling.heads * tiling.tokens
    outs = [
        jax.ShapeDtypeStruct(flat[0].shape, qkv.dtype),
        jax.ShapeDtypeStruct((tiling.programs * rows, tiling.tokens), jnp.float32),
    ]
    if (
        tiling.blocks > 1
    ):  # for the keys' programs: each query's logarithmic sum, and mean cotangent
        outs += 2 * [jax.ShapeDtypeStruct((tiling.windows * rows,), jnp.float32)]
    qkv_cotangent, partial, *by_query = _call(_backward_kernel, tiling, outs, *flat)
    if by_query:
        qkv_cotangent = _call(
            _backward_keys_kernel, tiling, outs[0], *flat, *by_query, qkv_cotangent, aliases={5: 0}
        )
    # Each program has the sum of its own windows, so that the order of addition is always the same.
    bias_cotangent = partial.reshape(tiling.programs, *bias.shape).sum(0).astype(bias.dtype)
    return qkv_cotangent.reshape(qkv.shape), bias_cotangent


def _flat(x: Array, rows: int) -> Array:
    return x.reshape(math.prod(x.shape[:rows]), -1)


def _call(kernel: Any, tiling: Tiling, outs: Any, *arrays: Array, aliases: Any = None) -> Any:
    return pl.pallas_call(
        functools.partial(kernel, tiling=tiling),
        out_shape=outs,
        grid=(tiling.heads, tiling.blocks, tiling.programs),
        input_output_aliases=aliases or {},
        # The next turn's tokens are loaded ahead; in float32 small GPUs have not the memory for it.
        compiler_params=plgpu.CompilerParams(
            num_warps=4, num_stages=2 if arrays[0].dtype.itemsize == 2 else 1
        ),
        interpret=tiling.task.interpret,
    )(*arrays)


# The kernels.


def _forward_kernel(qkv: Any, bias: Any, out: Any, *, tiling: Tiling) -> None:
    head, block, program = (pl.program_id(axis) for axis in range(3))
    queries = block * tiling.block + _iota(tiling.block)
    keys = _iota(tiling.lanes)
    biases = _biases(tiling, bias, head, queries[:, None], keys[None, :])

    def turn(number: Array, carry: Array) -> Array:
        window = number * tiling.programs + program
        at_queries, at_keys = (_find(tiling, window, lanes) for lanes in (queries, keys))
        q, k, v = _read_qkv(tiling, qkv, at_queries, at_keys, head)
        logits = _logits(tiling, plgpu.dot(q, k, trans_b=True), biases, at_queries, at_keys)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        mixed = plgpu.dot(weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)
        _write(tiling, out, at_queries, head, mixed)
        return carry

    jax.lax.fori_loop(0, tiling.turns, turn, 0)


def _backward_kernel(
    qkv: Any,
    bias: Any,
    cotangent: Any,
    qkv_cotangent: Any,
    bias_cotangent: Any,
    *by_query: Any,
    tiling: Tiling,
) -> None:
    """Writes the gradients of queries and biases, and of keys and values if they are one block."""
    head, block, program = (pl.program_id(axis) for axis in range(3))
    queries = block * tiling.block + _iota(tiling.block)
    keys = _iota(tiling.lanes)
    biases = _biases(tiling, bias, head, queries[:, None], keys[None, :])

    def turn(number: Array, total: Array) -> Array:
        window = number * tiling.programs + program
        at_queries, at_keys = (_find(tiling, window, lanes) for lanes in (queries, keys))
        q, k, v = _read_qkv(tiling, qkv, at_queries, at_keys, head)
        of_out = _read(tiling, cotangent, at_queries, head)
        logits = _logits(tiling, plgpu.dot(q, k, trans_b=True), biases, at_queries, at_keys)
        highest = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - highest)
        sums = weights.sum(-1, keepdims=True)
        weights = weights / sums
        of_weights = plgpu.dot(of_out, v, trans_b=True)
        mean = (weights * of_weights).sum(-1, keepdims=True)
        of_logits = weights * (of_weights - mean)
        narrow = of_logits.astype(q.dtype)
        _write(tiling, qkv_cotangent, at_queries, head, tiling.task.scale * plgpu.dot(narrow, k))
        if by_query:
            rows = (window * tiling.heads + head) * tiling.tokens + queries[:, None]
            for ref, value in zip(by_query, (highest + jnp.log(sums), mean), strict=True):
                plgpu.store(ref.at[rows], value, mask=at_queries.there)
        else:
            of_k = tiling.task.scale * plgpu.dot(narrow, q, trans_a=True)
            of_v = plgpu.dot(weights.astype(v.dtype), of_out, trans_a=True)
            _write(tiling, qkv_cotangent, at_keys, tiling.heads + head, of_k)
            _write(tiling, qkv_cotangent, at_keys, 2 * tiling.heads + head, of_v)
        return total + of_logits

    total = jnp.zeros((tiling.block, tiling.lanes), jnp.float32)
    total = jax.lax.fori_loop(0, tiling.turns, turn, total)
    rows = (program * tiling.heads + head) * tiling.tokens + queries[:, None]
    there = (queries[:, None] < tiling.tokens) & (keys[None, :] < tiling.tokens)
    plgpu.store(bias_cotangent.at[rows, keys[None, :]], total, mask=there)


def _backward_keys_kernel(*refs: Any, tiling: Tiling) -> None:
    """Writes the gradients of a block of keys and values; logits stand (keys, queries)."""
    qkv, bias, cotangent, sums, means, _, qkv_cotangent = refs
    head, block, program = (pl.program_id(axis) for axis in range(3))
    keys = block * tiling.block + _iota(tiling.block)
    queries = _iota(tiling.lanes)
    biases = _biases(tiling, bias, head, queries[None, :], keys[:, None])

    def turn(number: Array, carry: Array) -> Array:
        window = number * tiling.programs + program
        at_queries, at_keys = (_find(tiling, window, lanes) for lanes in (queries, keys))
        q, k, v = _read_qkv(tiling, qkv, at_queries, at_keys, head)
        of_out = _read(tiling, cotangent, at_queries, head)
        rows = (window * tiling.heads + head) * tiling.tokens + queries[None, :]
        there = at_queries.there.reshape(1, -1)
        # A query that is not there has weights, but nothing pulls at its output.
        logarithm, mean = (plgpu.load(x.at[rows], mask=there, other=0.0) for x in (sums, means))
        logits = _logits(tiling, plgpu.dot(k, q, trans_b=True), biases, at_keys, at_queries)
        weights = jnp.exp(logits - logarithm)
        of_logits = weights * (plgpu.dot(v, of_out, trans_b=True) - mean)
        of_k = tiling.task.scale * plgpu.dot(of_logits.astype(q.dtype), q)
        of_v = plgpu.dot(weights.astype(v.dtype), of_out)
        _write(tiling, qkv_cotangent, at_keys, tiling.heads + head, of_k)
        _write(tiling, qkv_cotangent, at_keys, 2 * tiling.heads + head, of_v)
        return carry

    jax.lax.fori_loop(0, tiling.turns, turn, 0)


@dataclasses.dataclass
class _Tokens:
    """The places of some tokens of a window; each array is (tokens, 1)."""

    rows: Array  # among the tokens of all maps
    regions: Array  # tokens of different ones were no neighbours before the shift
    there: Array  # False for padding: to a power of two, and after the last window


def _find(tiling: Tiling, window: Array, lanes: Array) -> _Tokens:
    """Returns the places in the map of a window's tokens, as if it were rolled and padded."""
    cut, (height, width) = tiling.task.cut, tiling.shape[1:3]
    image, window = _divide(window, math.prod(tiling.across))
    down, across = _divide(window, tiling.across[1])
    y, x = _divide(lanes[:, None], cut.window_size[1])
    y, x = y + down * cut.window_size[0], x + across * cut.window_size[1]
    # As in `shifted_window_mask`: what came round from the other end is a region of its own.
    rolled_in = [
        (place >= size - step).astype(jnp.int32) if step else jnp.zeros_like(place)
        for place, size, step in zip((y, x), (height, width), cut.shift, strict=True)
    ]
    around = (height, width) if cut.pad_before_roll else tiling.task.size
    y, x = (
        _unroll(place, step % size, size)
        for place, step, size in zip((y, x), cut.shift, around, strict=True)
    )
    there = (lanes[:, None] < tiling.tokens) & (image < tiling.shape[0])
    return _Tokens((image * height + y) * width + x, 2 * rolled_in[0] + rolled_in[1], there)


def _unroll(place: Array, step: int, size: int) -> Array:
    """Returns the index on the rolled axis of what is at `place`; from `size` on nothing moved."""
    moved = place + step
    moved = jnp.where(moved >= size, moved - size, moved)
    return jnp.where(place < size, moved, place)


def _divide(x: Array, by: int) -> tuple[Array, Array]:
    """Returns quotient and remainder of integers that are not negative."""
    return jax.lax.div(x, jnp.full_like(x, by)), jax.lax.rem(x, jnp.full_like(x, by))


def _iota(size: int) -> Array:
    return jax.lax.iota(jnp.int32, size)


def _logits(
    tiling: Tiling, products: Array, biases: Array, at_rows: _Tokens, at_columns: _Tokens
) -> Array:
    logits = tiling.task.scale * products + biases
    if not any(tiling.task.cut.shift):
        return logits
    apart = at_rows.regions != at_columns.regions.reshape(1, -1)
    return logits + jnp.where(apart, tiling.task.mask_value, 0.0)


def _biases(tiling: Tiling, bias: Any, head: Array, queries: Array, keys: Array) -> Array:
    """Reads a head's biases; what pads the keys has no weight: -inf."""
    there = (queries < tiling.tokens) & (keys < tiling.tokens)
    biases = plgpu.load(bias.at[head * tiling.tokens + queries, keys], mask=there, other=0.0)
    return jnp.where(keys < tiling.tokens, biases.astype(jnp.float32), -np.inf)


def _read_qkv(
    tiling: Tiling, qkv: Any, at_queries: _Tokens, at_keys: _Tokens, head: Array
) -> tuple[Array, Array, Array]:
    q = _read(tiling, qkv, at_queries, head)
    k, v = (_read(tiling, qkv, at_keys, part * tiling.heads + head) for part in (1, 2))
    return q, k, v


def _read(tiling: Tiling, ref: Any, tokens: _Tokens, part: Array) -> Array:
    """Reads a head's channels of tokens, (tokens, columns), with zeros for those not there."""
    index, there = _index(tiling, ref, tokens, part)
    return plgpu.load(index, mask=there, other=0.0)


def _write(tiling: Tiling, ref: Any, tokens: _Tokens, part: Array, value: Array) -> None:
    index, there = _index(tiling, ref, tokens, part)
    plgpu.store(index, value.astype(ref.dtype), mask=there)


def _index(tiling: Tiling, ref: Any, tokens: _Tokens, part: Array) -> tuple[Any, Array]:
    columns = _iota(tiling.columns)[None, :]
    index = ref.at[tokens.rows, part * tiling.channels + columns]
    return index, tokens.there & (columns < tiling.channels)

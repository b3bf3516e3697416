"""Checks every attention kernel on the GPU at hand, then times cuDNN's against XLA's by length.

tokamax's kernels are checked where the package is installed.

python benchmarks/gpu_kernels.py [--part checks|lengths] [--smoke]

Values and gradients are compared with the plain formula in float32 at "highest"; the error is a
share of the largest value. Prints a line of JSON a check.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitswin_jax.nn.attention import attend
from vitswin_jax.nn.execution import MULTIPLE, flash
from vitswin_jax.nn.kernels.tokamax_attention import tokamax_attention
from vitswin_jax.nn.kernels.window_attention import window_attention
from vitswin_jax.nn.windows import Cut, map_windows, pad_to_multiple, shifted_window_mask

TOKENS = (50, 65, 101, 145, 196, 197, 257, 577)
LENGTHS = (50, 65, 101, 145, 197)
WINDOWS = ((7, 56), (8, 64), (12, 48), (16, 64), (7, 30))
"""Window, and the side of a map; the last is padded."""
BOUND = {"float32": 1e-4, "bfloat16": 2e-2}


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Returns normal arrays, float32."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def both(attention: Callable, arrays: list[jax.Array], cotangent: jax.Array) -> Any:
    """Returns the output and all gradients, jitted."""

    @jax.jit
    def run(arrays: list[jax.Array], cotangent: jax.Array) -> Any:
        out, back = jax.vjp(attention, *arrays)
        return out, *back(cotangent.astype(out.dtype))

    return run(arrays, cotangent)


def errors(got: Any, want: Any) -> list[float]:
    """Returns each output's largest error over its largest value."""
    return [
        float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
        for x, y in zip(got, want, strict=True)
    ]


def plain_flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes attention of (b, n, heads, d) by the formula."""
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(attend(q * q.shape[-1] ** -0.5, k, v), 1, 2)


def padded_flash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, implementation: str = "cudnn"
) -> jax.Array:
    """Computes the same as a ViT does: padded to a multiple of 8, and cut."""
    n = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, -n % MULTIPLE), (0, 0), (0, 0))) for x in (q, k, v))
    return flash(q, k, v, tokens=n, implementation=implementation)[:, :n]


def compare(
    run: Callable, plain: Callable, arrays: list[jax.Array], biases: list[jax.Array], **facts: Any
) -> dict[str, Any]:
    """Returns the line of a kernel: `arrays`, the last pulls at the output, are of its dtype."""
    *arrays, cotangent = arrays
    dtype = facts["dtype"]
    want = both(plain, [*arrays, *biases], cotangent)
    narrow = [*(x.astype(dtype) for x in arrays), *biases]
    got, near = (errors(both(form, narrow, cotangent), want) for form in (run, plain))
    right = all(math.isfinite(x) and x <= BOUND[dtype] for x in got)
    rounded = [[float(f"{x:.2g}") for x in error] for error in (got, near)]
    return facts | {"right": right} | dict(zip(("errors", "plain"), rounded, strict=True))


def check_flash(*, batch: int, implementation: str) -> Iterator[dict[str, Any]]:
    """Gives the errors of each length in bfloat16."""
    run = functools.partial(padded_flash, implementation=implementation)
    for n in TOKENS:
        arrays = draw(*4 * [(batch, n, 3, 64)])
        yield compare(run, plain_flash, arrays, [], check="flash", dtype="bfloat16", tokens=n)


def window(qkv: jax.Array, bias: jax.Array, *, cut: Cut, interpret: bool) -> jax.Array:
    """Computes attention in the windows of maps by the kernel."""
    (_, h, w, *_), shape = qkv.shape, qkv.shape
    padded = pad_to_multiple(qkv.reshape(*shape[:3], -1), cut.window_size)
    out = window_attention(
        padded.reshape(*padded.shape[:3], *shape[3:]),
        bias,
        cut=cut,
        size=(h, w),
        scale=shape[-1] ** -0.5,
        mask_value=-100.0,
        interpret=interpret,
    )
    return out[:, :h, :w]


def plain_window(qkv: jax.Array, bias: jax.Array, *, cut: Cut) -> jax.Array:
    """Computes the same by the formula."""
    shape = qkv.shape

    def mix(windows: jax.Array, mask: np.ndarray | None) -> jax.Array:
        q, k, v = jnp.moveaxis(windows.reshape(*windows.shape[:-1], *shape[3:]), (3, 4), (0, 3))
        masks = () if mask is None else (jnp.where(mask, 0.0, -100.0)[:, None],)
        out = attend(q * shape[-1] ** -0.5, k, v, biases=(bias, *masks))
        out = jnp.moveaxis(out, 2, 3).reshape(*windows.shape[:-1], -1)
        return jnp.tile(out, 3)  # as many channels as were given

    out = map_windows(mix, qkv.reshape(*shape[:3], -1), cut)
    return out[..., : out.shape[-1] // 3].reshape(*shape[:3], *shape[4:])


def check_windows(*, batch: int, heads: int, interpret: bool) -> Iterator[dict[str, Any]]:
    """Gives the errors of each window, shifted, in float32 and bfloat16."""
    for (side, size), dtype in itertools.product(WINDOWS, BOUND):
        cut = Cut((side, side), (side // 2, side // 2))
        qkv, bias, cotangent = draw(
            (batch, size, size, 3, heads, 32),
            (heads, side**2, side**2),
            (batch, size, size, heads, 32),
        )
        run = functools.partial(window, cut=cut, interpret=interpret)
        plain = functools.partial(plain_window, cut=cut)
        facts = {"check": "window", "dtype": dtype, "window": side, "map": size}
        yield compare(run, plain, [qkv, cotangent], [bias], **facts)


def plain_biased(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes attention of (..., n, heads, d) with biases by the formula."""
    q, k, v = (jnp.swapaxes(x, -3, -2) for x in (q, k, v))
    return jnp.swapaxes(attend(q * q.shape[-1] ** -0.5, k, v, biases=(bias,)), -3, -2)


def check_tokamax(*, batch: int, kernels: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Gives the errors of tokamax's kernels: sequences of 197 tokens, windows with their masks."""
    for kernel, dtype in itertools.product(kernels, BOUND):
        facts = {"check": f"tokamax {kernel}", "dtype": dtype}
        if (kernel, dtype) == ("mosaic", "float32"):
            continue  # this and the next: by `choices.TOKAMAX_KERNELS`

        def padded(*arrays: jax.Array, kernel: str = kernel) -> jax.Array:
            q, k, v = (jnp.pad(x, ((0, 0), (0, 3), (0, 0), (0, 0))) for x in arrays)
            return tokamax_attention(q, k, v, scale=1 / 8, tokens=197, kernel=kernel)[:, :197]

        arrays = draw(*4 * [(batch, 197, 3, 64)])
        yield _of_kernel(padded, plain_flash, arrays, [], **facts, tokens=197)
        for side in (7, 8, 12):
            n, shift = side**2, (side // 2, side // 2)
            if kernel == "mosaic" and n % 32:
                continue
            *arrays, bias = draw(*4 * [(batch, 16, n, 3, 32)], (3, n, n))
            mask = shifted_window_mask(4 * side, 4 * side, window_size=(side, side), shift=shift)
            bias = bias[None] + jnp.where(mask, 0.0, -100.0)[:, None]
            run = functools.partial(tokamax_attention, scale=32**-0.5, kernel=kernel)
            yield _of_kernel(run, plain_biased, arrays, [bias], **facts, window=side)


def _of_kernel(*args: Any, **facts: Any) -> dict[str, Any]:
    """Returns a kernel's line; one that cannot be compiled for this GPU is a line too."""
    try:
        return compare(*args, **facts)
    except Exception as error:  # whatever its compiler raises
        return facts | {"right": False, "error": f"{type(error).__name__}: {error}"[:300]}


def seconds(call: Callable[[], Any], *, calls: int) -> float:
    """Returns the seconds of a call; only the last is waited for."""
    jax.block_until_ready(call())
    began = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def time_lengths(*, tokens: int, calls: int) -> Iterator[dict[str, Any]]:
    """Gives forward and both passes' time of cuDNN's attention and XLA's, as many `tokens` each."""
    for n, width in itertools.product(LENGTHS, (12,)):
        batch = max(1, tokens // n)
        *arrays, cotangent = (x.astype(jnp.bfloat16) for x in draw(*4 * [(batch, n, width, 64)]))
        found: dict[str, list[float]] = {}
        for name, attention in (("xla", plain_flash), ("cudnn", padded_flash)):
            forward = jax.jit(attention)

            @jax.jit
            def step(arrays: Any, cotangent: Any, attention: Any = attention) -> Any:
                out, back = jax.vjp(attention, *arrays)
                return out, back(cotangent)

            found[name] = [
                1e6 * seconds(functools.partial(forward, *arrays), calls=calls),
                1e6 * seconds(functools.partial(step, arrays, cotangent), calls=calls),
            ]
        ratios = [round(b / a, 3) for a, b in zip(found["xla"], found["cudnn"], strict=True)]
        yield {"tokens": n, "heads": width, "batch": batch, "cudnn/xla": ratios} | {
            name: [round(x) for x in times] for name, times in found.items()
        }


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", default=["checks", "lengths"])
    parser.add_argument("--smoke", action="store_true", help="small, on any device")
    args = parser.parse_args()
    if "checks" in args.part:
        implementation, batch = ("xla", 2) if args.smoke else ("cudnn", 8)
        with jax.default_matmul_precision("highest"):
            _print(check_flash(batch=batch, implementation=implementation))
            if not args.smoke:
                _print(check_windows(batch=batch, heads=3, interpret=False))
            if importlib.util.find_spec("tokamax"):
                kernels = ("xla",) if args.smoke else ("mosaic", "triton")
                _print(check_tokamax(batch=batch, kernels=kernels))
    if "lengths" in args.part and not args.smoke:
        _print(time_lengths(tokens=128 * 197, calls=20))


def _print(lines: Iterator[dict[str, Any]]) -> None:
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

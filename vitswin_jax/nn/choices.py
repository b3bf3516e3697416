"""The implementations of attention that `attn_impl="auto"` chooses: tables of conditions.

The first row whose platform is the program's and whose conditions hold decides. A row that is
passed over for what its kernel cannot do says so in one log line.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vitswin_jax.core import terminal
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.forms import devices, forms

logger = terminal.logger(__name__)

LANES = 128
"""Of a TPU: its memory pads the last axis of an array to a multiple of this number."""
LONG = 512
"""Tokens from which a few heads at a time are faster on CPU: 0.45 of the time at 577 and 785
tokens, eight images and six heads; at 197 they are slower."""
SHORT = 64
"""Tokens from which cuDNN's attention is taken. It is faster at 197 (docs/performance.md); fewer
were not timed: `benchmarks/gpu_kernels.py --part lengths` does that."""
MOST_TOKENS = 256
"""Of a window, for the kernel: the logits of 16 queries, the fewest that Triton multiplies, are a
tile."""


class Setting(NamedTuple):
    """The facts on which the choice depends."""

    platform: str  # "cpu", "gpu" or "tpu"
    dtype: str
    tokens: int  # of a sequence or a window
    head_dim: int
    biased: bool = False  # by position
    dropout: bool = False  # of attention weights, in training
    paired: bool = False  # windows that stand side by side, and two fit the lanes
    capability: float = 9.0  # compute capability of an NVIDIA GPU
    cudnn: bool = True  # whether JAX has cuDNN's attention
    devices: int = 1  # of the mesh that a step is traced for
    triton: bool = True  # whether JAX has Pallas's way through Triton


Obstacles = Mapping[str, Callable[[Setting], Any]]
"""What an implementation does not take, in words, and when that is so."""


class Row(NamedTuple):
    """An implementation, where it is the fastest, and why it may not be had."""

    implementation: str
    platform: str | None  # None: every one
    wins: Callable[[Setting], bool]
    obstacles: Obstacles
    only: bool = False  # that platform has it
    package: str = ""  # that it needs: an extra of ours, of the same name


FLASH_DTYPES = ("bfloat16", "float16")
DROPOUT: Obstacles = {"attention dropout": lambda s: s.dropout}
OLD: Obstacles = {"a GPU older than compute capability 8.0": lambda s: s.capability < 8.0}
FLASH: Obstacles = {
    "position biases": lambda s: s.biased,
    "other types than bfloat16 and float16": lambda s: s.dtype not in FLASH_DTYPES,
    "heads of other than 8, 16, ... 128 channels": lambda s: s.head_dim % 8 or s.head_dim > 128,
    "a JAX that finds no cuDNN": lambda s: not s.cudnn,
    **DROPOUT,
    **OLD,
}
WINDOW_KERNEL: Obstacles = {
    f"windows of more than {MOST_TOKENS} tokens": lambda s: s.tokens > MOST_TOKENS,
    "a JAX without Pallas's way through Triton": lambda s: not s.triton,
    **DROPOUT,
    **OLD,
}
TOKAMAX_KERNELS: Mapping[str, Callable[[Setting], bool]] = {
    # Its backward pass is for these GPUs only, and its copies take biases 32 keys at a time.
    "mosaic": lambda s: (
        s.platform == "gpu"
        and 9.0 <= s.capability < 11.0
        and s.dtype in FLASH_DTYPES
        and not (s.biased and s.tokens % 32)
    ),
    "triton": lambda s: s.platform == "gpu" and s.capability >= 8.0 and s.triton,
    "xla": lambda s: s.platform != "gpu",
}
"""What each kernel of tokamax takes, with the gradient of a bias. `xla` is no kernel: it is what
other platforms are given, for the same numbers."""
TOKAMAX: Obstacles = {
    "a mesh of several GPUs": lambda s: s.platform == "gpu" and s.devices > 1,
    "heads of fewer than 16 or more than 128 channels": lambda s: (
        s.platform == "gpu" and not 16 <= s.head_dim <= 128
    ),
    **DROPOUT,
    **OLD,
    "float32, biases for tokens that 32 does not divide, or this GPU by a JAX without Pallas for "
    "Triton": lambda s: not _tokamax_kernels(s),
}

SEQUENCES = (
    Row("cudnn", "gpu", lambda s: s.tokens >= SHORT, FLASH, only=True),
    Row("tokamax", None, lambda _: False, TOKAMAX, package="tokamax"),  # not measured
    Row("cached", "cpu", lambda s: s.tokens >= LONG and not s.biased and not s.dropout, {}),
    Row("xla", None, lambda _: True, {}),
)
WINDOWS = (
    Row("fused", "gpu", lambda s: s.dtype != "float32", WINDOW_KERNEL, only=True),
    Row("tokamax", None, lambda _: False, TOKAMAX, package="tokamax"),  # not measured
    Row("pairs", "tpu", lambda s: s.paired, {}),
    Row("xla", None, lambda _: True, {}),
)


def choose(rows: tuple[Row, ...], setting: Setting) -> str:
    """Returns the implementation of the first of `rows` that wins and has no obstacle.

    Logs once a process for each obstacle that an implementation met.
    """
    for row in rows:
        if row.platform in (None, setting.platform) and row.wins(setting):
            if obstacle := _obstacle(row, setting):
                _log(row.implementation, obstacle)
            else:
                return row.implementation
    raise ValueError(f"no row for {setting}; the last one must take everything.")


def check(rows: tuple[Row, ...], implementation: str, setting: Setting) -> None:
    """Raises UserError for a setting that the implementation, asked for by name, does not take."""
    row = next(row for row in rows if row.implementation == implementation)
    name = f"attn_impl={implementation!r}"
    if row.package and importlib.util.find_spec(row.package) is None:
        python = ".".join(map(str, sys.version_info[:2]))
        raise UserError(
            f"{name} needs the package {row.package}, which Python 3.12 and newer can install, and "
            f"this is {python}: pip install 'vitswin_jax[{row.package}]', or use 'auto'."
        )
    if row.only and row.platform not in (None, setting.platform):
        raise UserError(
            f"{name} is for {row.platform.upper()}s, and this is {setting.platform}; use 'auto'."
        )
    if obstacle := _obstacle(row, setting):
        raise UserError(f"{name} does not take {obstacle}; use 'auto'.")


def tokamax_kernel(setting: Setting) -> str:
    """Returns the kernel of tokamax that a setting is given, `Forms.tokamax` before others.

    Raises UserError where none takes it.
    """
    check(SEQUENCES, "tokamax", setting)
    return min(_tokamax_kernels(setting), key=lambda name: name != forms().tokamax)


def _tokamax_kernels(setting: Setting) -> list[str]:
    return [name for name, takes in TOKAMAX_KERNELS.items() if takes(setting)]


def _obstacle(row: Row, setting: Setting) -> str | None:
    return next((what for what, holds in row.obstacles.items() if holds(setting)), None)


@functools.cache
def _log(implementation: str, obstacle: str) -> None:
    logger.warning("attn_impl='auto': %s does not take %s; 'xla' does.", implementation, obstacle)


def here(platform: str, **facts: Any) -> Setting:
    """Returns a setting on this machine."""
    facts = {"devices": devices()} | facts
    if platform != "gpu":
        return Setting(platform, **facts)
    return Setting(platform, **facts, **_gpu())


@functools.cache
def _gpu() -> Mapping[str, Any]:
    """Returns the kind of this machine's first GPU, and JAX's support for it.

    Programs may be traced for a GPU where there is none: then it is as new as any.
    """
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None) if device.platform == "gpu" else None
    q = jax.ShapeDtypeStruct((1, 8, 1, 64), jnp.bfloat16)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.jit(attention).trace(q, q, q).lower(lowering_platforms=("cuda",))
        cudnn = True
    except (RuntimeError, NotImplementedError, ValueError):
        cudnn = False
    return {
        "capability": float(capability or 9.0),
        "cudnn": cudnn,
        "triton": importlib.util.find_spec("jax.experimental.pallas.triton") is not None,
    }

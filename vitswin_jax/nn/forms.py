"""Equal forms of a formula, and the form that each platform is given.

The forms of one field have the same value and gradient, to rounding; XLA makes programs of unequal
speed and memory of them. What each choice gains is measured: docs/performance.md ("What each choice
bought", "On GPUs"). A form is chosen while a model is traced.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from vitswin_jax.core.choices import one_of


@dataclasses.dataclass(frozen=True)
class Forms:
    """A form of each formula that has several; the functions of `nn.xla` say what they do."""

    products: str = "autodiff"  # or "keep_input": the backward pass computes act(x) again
    linear: str = "matrix"  # of rows, plus a vector; or "einsum": with the axes as they are
    norm: str = "keep_statistics"  # of each row; or "keep_standard": for the backward pass
    patches: str = "product"  # of all patches with the kernel; or "convolution"
    qkv: str = "apart"  # three products for queries, keys and values; or "joint": one
    parts: str = "loop"  # over the parts of a batch; or "unrolled", one after the other
    tokamax: str = "mosaic"  # or "triton": the kernel that `attn_impl="tokamax"` tries first


_TPU = Forms("keep_input", "einsum", "keep_standard", "convolution", "joint")  # tuned on CPUs

PLATFORMS: dict[str, Forms] = {
    "cpu": dataclasses.replace(_TPU, parts="unrolled"),
    "gpu": Forms(),
    "tpu": _TPU,
}

COMPILER_OPTIONS: dict[str, dict[str, bool | int]] = {
    "gpu": {
        # cuBLASLt adds biases and residuals within the products' kernels; Triton's products win
        # seldom, and trying them takes a third of the time that a program compiles.
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_cublaslt": True,
        # Products of one input with three kernels stay three: one joint output is copied apart.
        "xla_gpu_dot_merger_threshold_mb": 0,
    }
}
"""By platform, the options of XLA that differ from its defaults."""

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_DEVICES: contextvars.ContextVar[int] = contextvars.ContextVar("devices", default=1)
_FORMS: contextvars.ContextVar[Forms | None] = contextvars.ContextVar("forms", default=None)


def platform() -> str:
    """Returns the platform that a program is traced for: "cpu", "gpu" or "tpu"."""
    return _PLATFORM.get() or jax.default_backend()


def devices() -> int:
    """Returns how many devices the mesh has that a program is traced for; 1 where none is named."""
    return _DEVICES.get()


def forms() -> Forms:
    """Returns the forms that a program is traced with."""
    return _FORMS.get() or PLATFORMS.get(platform(), Forms())


def compiler_options(platform_name: str | None = None) -> dict[str, bool | int] | None:
    """Returns `compiler_options` for `jax.jit`, for the platform in use or another."""
    return COMPILER_OPTIONS.get(platform_name or platform())


@contextlib.contextmanager
def traced_for(
    platform: str | None = None, forms: Forms | None = None, devices: int | None = None
) -> Iterator[None]:
    """Traces programs for a platform, with forms or for devices other than the default.

    For programs that are compiled where they do not run, and for measurements. jax.jit keeps what
    it has traced: trace a function of its own.
    """
    if platform is not None:
        one_of("platform", platform, PLATFORMS)
    new: dict[contextvars.ContextVar[Any], Any] = {
        _PLATFORM: platform,
        _FORMS: forms,
        _DEVICES: devices,
    }
    before = [(variable, variable.set(value or variable.get())) for variable, value in new.items()]
    try:
        yield
    finally:
        for variable, token in before:
            variable.reset(token)

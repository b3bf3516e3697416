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
    gelu: str = "keep_slope"  # or "keep_input": the backward pass computes the slope
    norm: str = "autodiff"  # or "keep_standard", "keep_input": what the backward pass is left
    bias_gradients: str = "sum"  # or "product" of a row of ones with the outputs' gradient
    patches: str = "product"  # of all patches with the kernel; or "convolution"
    qkv: str = "joint"  # one product for queries, keys and values; or "apart": three
    tokamax: str = "mosaic"  # or "triton": the kernel that `attn_impl="tokamax"` tries first


PLATFORMS: dict[str, Forms] = {
    "cpu": Forms(products="keep_input", norm="keep_standard", patches="convolution"),
    "gpu": Forms(),
    "tpu": Forms(products="keep_input", norm="keep_standard", patches="convolution"),
}

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

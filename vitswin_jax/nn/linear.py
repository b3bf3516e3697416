"""Dense layers whose backward pass keeps their input alone, and computes again what it was made of.

The families' largest products: queries, keys and values, what attention puts out, both of the MLP.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Activation = Callable[[Array], Array]


def compute_after(
    x: Float[Array, "*shape"], done: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns x, and has XLA compute what is made of it anew, and behind `done`.

    An optimization_barrier; but XLA's CPU backend drops those before it unites equal computations
    and puts them in order. So there a zero is added that only `done` can tell.
    """
    return jax.lax.platform_dependent(x, done, cpu=_add_zero, default=_wait)


def _add_zero(x: Array, done: Array) -> Array:
    return x + jnp.maximum(jnp.minimum(done, 0), 0).astype(x.dtype)


def _wait(x: Array, done: Array) -> Array:
    return jax.lax.optimization_barrier((x, done))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(equation: str, act: Activation | None, x: Array, kernel: Array) -> Array:
    return jnp.einsum(equation, x if act is None else act(x), kernel)


def _product_forward(
    equation: str, act: Activation | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _product(equation, act, x, kernel), (x, kernel)


def _product_backward(
    equation: str, act: Activation | None, kept: tuple[Array, Array], pull: Array
) -> tuple[Array, Array]:
    """Returns gradients, the kernel's last.

    The kernel is then read no more, and an optimizer may write the new one over it. And x, or what
    `act` makes of it, need not be kept where it can be made again from what is kept.
    """
    x, kernel = kept
    (pull_in,) = jax.linear_transpose(lambda y: jnp.einsum(equation, y, kernel), x)(pull)
    y = x = compute_after(x, pull_in)
    if act is not None:
        y, transpose = jax.vjp(act, x)
        (pull_in,) = transpose(pull_in)
    (pull_kernel,) = jax.linear_transpose(lambda k: jnp.einsum(equation, y, k), kernel)(pull)
    return pull_in, pull_kernel


_product.defvjp(_product_forward, _product_backward)


class Linear(nn.Module):
    """An einsum of inputs, or of what `act` makes of them, with a learned kernel, plus a bias.

    Parameters: `kernel` of `shape` and, of its axes that come out, `bias`. In training forward-mode
    differentiation (jax.jvp) is refused, as of any jax.custom_vjp.
    """

    shape: tuple[int, ...]
    equation: str  # of inputs and kernel, as jnp.einsum takes it
    act: Activation | None = None  # of each number by itself
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*inputs"], *, train: bool) -> Float[Array, "*outputs"]:
        """Returns the product in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, self.shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        if train:
            y = _product(self.equation, self.act, x, kernel)
        else:
            y = jnp.einsum(self.equation, x if self.act is None else self.act(x), kernel)
        return y + self._bias(y.ndim) if self.use_bias else y

    def _bias(self, ndim: int) -> Float[Array, "*outputs"]:
        """Returns the bias with an axis of 1 where the output has one that the kernel has not."""
        inputs, out = self.equation.split("->")
        sizes = dict(zip(inputs.split(",")[1], self.shape, strict=True))
        before, dots, behind = out.partition("...")
        inner = ndim - len(before + behind) if dots else 0
        axes = [*before, *inner * [None], *behind]
        bias = self.param(
            "bias",
            self.bias_init,
            tuple(sizes[axis] for axis in axes if axis in sizes),
            jnp.float32,
        )
        return jnp.asarray(bias, self.dtype).reshape([sizes.get(axis, 1) for axis in axes])

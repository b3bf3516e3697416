"""The MLP of all families, its activations, and its gated forms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.choices import one_of
from vitswin_jax.nn import xla
from vitswin_jax.nn.layers import NORMS, Linear


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _gated(act: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns act(gate) · value of inputs of which one half is the gate, the other the value."""

    def gate(x: Array) -> Array:
        gate, value = jnp.split(x, 2, axis=-1)
        return act(gate) * value

    return gate


@jax.jit  # which keeps its name in programs: export writes it as one function
def gelu_tanh(x: Array) -> Array:
    """Returns x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³))), elementwise (arXiv:1606.08415)."""
    return jax.nn.gelu(x, approximate=True)


GATES: dict[str, Callable[[Array], Array]] = {  # arXiv:2002.05202; half the width is left
    "swiglu": jax.nn.silu,  # DINOv2's giant, DINOv3's larger sizes, EVA-02, AIMv2
    "geglu": xla.gelu,
}
"""Activations of gated MLPs -> what acts on the gate."""


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": xla.gelu,  # every PyTorch original
    "gelu_tanh": gelu_tanh,  # Google's JAX code
    "quick_gelu": _quick_gelu,  # OpenAI's CLIP
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    **{name: _gated(act) for name, act in GATES.items()},
}


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the activation called `name`; raises UserError for one that is unknown."""
    return one_of("act", name, ACTIVATIONS)


def check_gates(act: str, widths: Iterable[int]) -> list[str]:
    """Returns a line for the first of an MLP's widths that a gate cannot halve, else none."""
    odd = [width for width in widths if act in GATES and width % 2]
    return [f"mlp_ratio makes a width of {w}, and act={act!r} needs an even one" for w in odd[:1]]


class Mlp(nn.Module):
    """Two dense layers with an activation between them (Transformer, section 3.3).

    `fc1` of a gated activation makes gates and values side by side, and `hidden_dim` counts both.
    """

    hidden_dim: int
    act: str = "gelu"
    drop_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.normal(1e-6)
    use_bias: bool = True
    use_out_bias: bool = True
    norm_eps: float | None = None  # of a norm of what fc2 reads (EVA-02); None: no norm
    norm_layer: str = "layernorm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"], *, train: bool) -> Float[Array, "*batch c"]:
        """Applies fc1, the activation and fc2, each followed by dropout in training."""
        width, act = x.shape[-1], activation(self.act)
        linear = functools.partial(
            Linear, kernel_init=self.kernel_init, bias_init=self.bias_init, dtype=self.dtype
        )
        shape = (width, self.hidden_dim)
        fc1 = linear(shape, "nc,cd->nd", use_bias=self.use_bias, name="fc1")
        y = fc1(xla.rows(x), train=train)
        gated = self.act in GATES
        # Then fc2 cannot take act upon itself.
        apart = gated or (train and self.drop_rate) or self.norm_eps is not None
        if apart:
            y = nn.Dropout(self.drop_rate, deterministic=not train)(act(y))
        if self.norm_eps is not None:
            y = NORMS[self.norm_layer](self.norm_eps, self.dtype, name="norm")(y)
        shape, before = (y.shape[-1], width), None if apart else act
        use_bias = self.use_bias and self.use_out_bias
        y = linear(shape, "nc,cd->nd", before, use_bias=use_bias, name="fc2")(y, train=train)
        return nn.Dropout(self.drop_rate, deterministic=not train)(y).reshape(x.shape)

"""What the blocks of all families share: their options, and their residual branches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.nn import xla
from vitswin_jax.nn.execution import EXECUTIONS, Execution
from vitswin_jax.nn.layers import DropPath, LayerNorm


@dataclass(frozen=True)
class BlockOptions:
    """The options that all blocks of a model share, each named as the model's field.

    A new option of blocks is one field here, of the same name as the model's.
    """

    qkv_bias: bool = True
    act: str = "gelu"
    norm_eps: float = 1e-6
    init_values: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    mask_value: float = -100.0
    attn_impl: str = "xla"
    kernel_init: nn.initializers.Initializer | None = None  # None: Xavier's, by each product's fans
    dtype: DTypeLike = jnp.float32

    @classmethod
    def of(cls, model: nn.Module, **others: Any) -> BlockOptions:
        """Returns the options of a model's blocks: its fields of these names, and `others`."""
        names = {f.name for f in dataclasses.fields(cls)} & {
            f.name for f in dataclasses.fields(model)
        }
        return cls(**{name: getattr(model, name) for name in names} | others)

    @property
    def execution(self) -> Execution:
        """How attention is computed."""
        return EXECUTIONS[self.attn_impl]


class ResidualBlock(nn.Module):
    """A block whose branches are added to a residual stream, each with stochastic depth.

    A family's block inherits `norm` and `add`, and with them what makes both fast on each backend.
    """

    options: BlockOptions

    def norm(self, name: str, **fields: Any) -> LayerNorm:
        """Creates a layer normalisation called `name`."""
        return LayerNorm(self.options.norm_eps, self.options.dtype, name=name, **fields)

    def add(
        self,
        x: Float[Array, "*shape"],
        branch: Float[Array, "*shape"],
        drop_path: float | Float[Array, ""],
        *,
        train: bool,
    ) -> Float[Array, "*shape"]:
        """Returns x + branch, the branch dropped for whole examples with rate `drop_path`."""
        return xla.store_gradient(x + DropPath()(branch, drop_path, train=train))

"""A stage of the Swin families: its blocks, in a loop or by scan, and the merging after them.

Axes: b batch, h w map, i j the next stage's map, c channels.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.nn.layers import LayerNorm
from vitswin_jax.nn.scan import apply_blocks, groups_of
from vitswin_jax.nn.windows import pad_to_multiple


def concatenate_neighbors(x: Float[Array, "b h w c"]) -> Float[Array, "b i j 4*c"]:
    """Puts the channels of each 2x2 neighbourhood side by side; odd maps are padded with zeros.

    The order is (0, 0), (1, 0), (0, 1), (1, 1) as (row, column).
    """
    x = pad_to_multiple(x, (2, 2))
    return rearrange(x, "b (h row) (w column) c -> b h w (column row c)", row=2, column=2)


class PatchMerging(nn.Module):
    """Halves the map: 2x2 neighbourhoods, normed and projected to 2c channels (Swin, section 3.1).

    With `norm_last` they are projected, then normed, as Swin V2's are.
    """

    norm_eps: float
    kernel_init: nn.initializers.Initializer
    dtype: DTypeLike
    norm_last: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j 2*c"]:
        """Merges a map; sides are rounded up."""
        norm = LayerNorm(self.norm_eps, self.dtype, name="norm")
        reduction = nn.Dense(
            2 * x.shape[-1],
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="reduction",
        )
        x = concatenate_neighbors(x)
        return norm(reduction(x)) if self.norm_last else reduction(norm(x))


class BlockGroup(nn.Module):
    """Windowed and shifted blocks in turn, and a norm where one ends them: what a scan repeats."""

    blocks: tuple[Callable[..., nn.Module], Callable[..., nn.Module]]  # each takes name
    size: int
    remat: bool | str  # of each block
    norm: Callable[..., nn.Module] | None  # takes name

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], drop_path: Float[Array, " size"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies all of them, each block with its own rate."""
        blocks = [self.blocks[i % 2](name=f"block_{i}") for i in range(self.size)]
        rates = list(drop_path)
        x, _ = apply_blocks(blocks, x, rates, train=train, remat=self.remat, in_scan=True)
        return x if self.norm is None else self.norm(name=f"norm_{self.size - 1}")(x)


class Stage(nn.Module):
    """Blocks at one resolution, windowed and shifted in turn, then the merging to the next."""

    blocks: tuple[Callable[..., nn.Module], Callable[..., nn.Module]]  # each takes name
    rates: tuple[float, ...]  # stochastic depth, one a block
    merging: Callable[..., nn.Module] | None  # takes name
    remat: bool | str
    scan: bool
    norm: Callable[..., nn.Module]  # takes name
    norm_after: tuple[int, ...]  # blocks that a norm of the map follows

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b i j d"], Float[Array, "b h w c"]]:
        """Returns the map for the next stage, and the one before merging."""
        depth = len(self.rates)
        groups = groups_of(depth, self.norm_after)
        scanned = groups.size * groups.number if self.scan else 0
        if scanned:
            # Backward recomputes a pair at once; six blocks at once would need the memory of six.
            whole, each = (self.remat, False) if groups.size == 2 else (False, self.remat)
            norm = self.norm if groups.normed else None
            group = BlockGroup(self.blocks, groups.size, each, norm, name=groups.name)
            rates = [self.rates[i : i + groups.size] for i in range(0, scanned, groups.size)]
            x, _ = apply_blocks(group, x, rates, train=train, remat=whole)
        for i in range(scanned, depth):
            block = self.blocks[i % 2](name=f"block_{i}")
            x, _ = apply_blocks([block], x, self.rates[i : i + 1], train=train, remat=self.remat)
            x = self._normed(x, i)
        if scanned == depth and not groups.normed:
            x = self._normed(x, depth - 1)
        return (x if self.merging is None else self.merging(name="downsample")(x)), x

    def _normed(self, x: Float[Array, "b h w c"], block: int) -> Float[Array, "b h w c"]:
        """Returns the map after a block, normed where a norm follows it."""
        return self.norm(name=f"norm_{block}")(x) if block in self.norm_after else x

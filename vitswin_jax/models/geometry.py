"""Geometry of a model: where its tokens lie, and where tools find the parts that they show.

Each family has a method `geometry`. Explanations, reports, weights files and pre-training read a
model's geometry and never its class.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from vitswin_jax.core.types import Params, UserError
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import Cut

Tokens = Int[np.ndarray, "windows n"]


@dataclass(frozen=True)
class BlockGeometry:
    """Place of one block's tokens.

    The tokens are numbered: first the prefix, then the places of the map, row-major.
    """

    name: str
    """Path of the block's parameters, such as "block_3" or "stage_1/block_0"."""
    stage: int
    size: Size
    """(height, width) of the map, in tokens."""
    stride: Size
    """Pixels from one place of the map to the next, (down, across)."""
    prefix: int = 0
    """Number of tokens before those of the map, such as the class token."""
    cut: Cut | None = None
    """Windows that tokens are mixed within; None if every token sees all tokens."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens, without padding."""
        return self.prefix + self.size[0] * self.size[1]

    @property
    def window(self) -> Size:
        """(height, width) of a window; without windows, of the map."""
        return self.size if self.cut is None else self.cut.window_size

    @property
    def tokens(self) -> Tokens:
        """Numbers of the tokens of each window, -1 for padding."""
        if self.cut is None:
            return np.arange(self.num_tokens)[None]
        return window_tokens(self.size, self.cut)


@dataclass(frozen=True)
class Pooling:
    """Way in which the last block's tokens become the features that the head reads."""

    tokens: int = 0
    """Number of first tokens that are averaged, such as the class token."""
    patches: float = 1.0
    """Share of the mean over all patches; the first tokens have the rest."""
    attention: str | None = None
    """Module whose attention pools instead, if there is one."""


class Outputs(NamedTuple):
    """All that one pass of a model gives: what a student learns of a teacher."""

    logits: Float[Array, "b k"]
    """The `features` where the model has no head."""
    features: Float[Array, "b d"]
    """What the head reads, float32."""
    patches: Float[Array, "b i j c"]
    """The last map, normed where a norm follows the last block."""


@dataclass(frozen=True)
class Geometry:
    """Facts about a model that tools read, for images of one size."""

    blocks: tuple[BlockGeometry, ...]
    evidence: str
    """Module whose input Grad-CAM explains: the last tokens that all reach the head."""
    filters: str | None = "patch_embed/proj/kernel"
    """Parameter that maps the pixels of a patch to channels; None if patches are not of pixels."""
    attention: str | None = None
    """Module of each block that sows attention weights; None if blocks have no attention."""
    biases: bool = False
    """Whether the attention adds relative position biases."""
    positions: Callable[[Params], Float[Array, "h w c"]] | None = None
    """Reads the embedding that is added to each patch; None if patches have none."""
    pooling: Pooling = Pooling()
    normed: bool = True
    """Whether a norm follows the last block directly."""

    @property
    def grid(self) -> Size:
        """(height, width) of the first map, in patches."""
        return self.blocks[0].size


@runtime_checkable
class HasGeometry(Protocol):
    """Model that tools can read."""

    def geometry(self, size: Size | None = None) -> Geometry:
        """Returns the geometry for images of `size`, (height, width), by default `img_size`."""
        ...


def geometry_of(model: nn.Module, size: Size | None = None) -> Geometry:
    """Returns a model's geometry for images of `size`, (height, width), by default `img_size`.

    Raises UserError if the model's family does not describe its geometry.
    """
    if not isinstance(model, HasGeometry):
        raise UserError(
            f"{type(model).__name__} has no method geometry(); docs/add_a_model.md describes it."
        )
    return model.geometry(size)


B = TypeVar("B", bound=BlockGeometry)


def by_stage(blocks: Sequence[B]) -> list[list[B]]:
    """Returns the blocks of each stage."""
    return [list(stage) for _, stage in itertools.groupby(blocks, key=lambda b: b.stage)]


@functools.lru_cache(maxsize=64)
def window_tokens(size: Size, cut: Cut) -> Tokens:
    """Returns the number of the token at each place of a map's (shifted) windows, -1 for padding.

    `nn.windows.map_windows` pads, rolls and cuts maps in this way.
    """
    tokens = np.arange(size[0] * size[1]).reshape(size)
    back = (-cut.shift[0], -cut.shift[1])
    padding = [(0, -side % step) for side, step in zip(size, cut.window_size, strict=True)]
    if not cut.pad_before_roll:
        tokens = np.roll(tokens, back, (0, 1))
    tokens = np.pad(tokens, padding, constant_values=-1)
    if cut.pad_before_roll:
        tokens = np.roll(tokens, back, (0, 1))
    height, width = cut.window_size
    windows = rearrange(tokens, "(i h) (j w) -> (i j) (h w)", h=height, w=width)
    windows.setflags(write=False)  # the cache hands out the same array again
    return windows

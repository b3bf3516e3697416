"""Masked image modelling: an encoder, any model here, learns from images to fill in hidden patches.

Axes: b batch, h w image, i j patch grid, p q pixels of a patch, c channels.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Key

from vitswin_jax.models.unlabelled import UnlabelledModel
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.sides import Size


class Reconstruction(NamedTuple):
    """A model's reconstruction of images of which it saw a part."""

    loss: Float[Array, " b"]
    """Of each image, over what was hidden."""
    image: Float[Array, "b h w channels"]
    """Hidden patches as predicted, the others as they were; in the units of the images."""
    masks: Bool[Array, "b i j"]
    """Which patches were hidden."""


def draw_masks(
    key: Key[Array, ""], count: int, *, grid: Size, hidden: int
) -> Bool[Array, "count i j"]:
    """Hides `hidden` cells of each of `count` grids; every choice is equally likely."""
    noise = jax.random.uniform(key, (count, grid[0] * grid[1]))
    rank = noise.argsort(-1).argsort(-1)
    return (rank < hidden).reshape(count, *grid)


def enlarge(masks: Bool[Array, "b i j"], cell: Size) -> Bool[Array, "b h w"]:
    """Returns masks whose cells have become `cell`, (height, width), cells of a finer grid."""
    return jnp.repeat(jnp.repeat(masks, cell[0], axis=1), cell[1], axis=2)


def cut_patches(images: Float[Array, "b h w c"], patch: Size) -> Float[Array, "b n d"]:
    """Returns the pixels of each patch in a row, row-major, the channels of a pixel together."""
    return rearrange(images, "b (i p) (j q) c -> b (i j) (p q c)", p=patch[0], q=patch[1])


def join_patches(
    patches: Float[Array, "b n d"], patch: Size, *, grid: Size
) -> Float[Array, "b h w c"]:
    """Puts patches back into images; the inverse of `cut_patches`."""
    (i, j), (p, q) = grid, patch
    return rearrange(patches, "b (i j) (p q c) -> b (i p) (j q) c", i=i, j=j, p=p, q=q)


class MaskedModel(UnlabelledModel):
    """The base of methods that fill in hidden patches.

    `__call__(images, masks=None, train=False)` gives a `Reconstruction`, and without masks draws
    them from the random numbers called "mask". `masks` are bool (b, i, j) on the encoder's grid. A
    method has `units`, the grid of what is hidden or not, and `hidden`, how many of them are.
    """

    @property
    def grid(self) -> Size:
        """The encoder's patch grid, (height, width)."""
        (h, w), (p, q) = self.img_size, pair(self.encoder.patch_size)
        return h // p, w // q

    @nn.nowrap  # evaluation draws for each image, outside of `apply`
    def draw(self, key: Key[Array, ""], count: int) -> Bool[Array, "count i j"]:
        """Draws the masks of `count` images, on the encoder's grid."""
        masks = draw_masks(key, count, grid=self.units, hidden=self.hidden)
        return enlarge(masks, (self.grid[0] // self.units[0], self.grid[1] // self.units[1]))

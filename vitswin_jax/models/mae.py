"""Masked autoencoder (arXiv:2111.06377): a ViT sees visible patches alone, a light one the rest.

Axes: b batch, h w image, i j patch grid, n patches, v visible patches, m tokens, d decoder_dim.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vitswin_jax.core.types import UserError
from vitswin_jax.models.masked import (
    MaskedModel,
    Reconstruction,
    cut_patches,
    enlarge,
    join_patches,
)
from vitswin_jax.models.vit import ViT
from vitswin_jax.models.vit_block import Block
from vitswin_jax.nn.block import BlockOptions
from vitswin_jax.nn.layers import LayerNorm, pair
from vitswin_jax.nn.posemb import sincos_2d
from vitswin_jax.nn.sides import Size

_TOKEN_INIT = nn.initializers.normal(0.02)
_MLP_RATIO = 4


def fixed_positions(grid: Size, *, prefix: int, embed_dim: int) -> Float[np.ndarray, "1 m c"]:
    """Returns zeros for `prefix` tokens, then the sin-cos embeddings of a grid."""
    table = sincos_2d(*grid, embed_dim=embed_dim, endpoint=False)
    return np.pad(table, ((0, 0), (prefix, 0), (0, 0)))


class Decoder(nn.Module):
    """Blocks over all patches, and the pixels that they predict (section 3)."""

    dim: int
    depth: int
    num_heads: int
    act: str
    norm_eps: float
    pixels: int  # of a patch, times their channels
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m c"],
        places: Int[Array, "b n"],
        mask_token: Float[Array, "1 1 d"],
        positions: Float[np.ndarray, "1 _ d"],
        *,
        train: bool,
    ) -> Float[Array, "b n k"]:
        """Returns the pixels of all patches, of tokens of a prefix and the visible ones.

        `places` has the place of each patch of the grid among the visible ones; those beyond are
        hidden, and become the mask token.
        """
        prefix = positions.shape[1] - places.shape[1]
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(x)
        hidden = positions.shape[1] - x.shape[1]
        token = jnp.broadcast_to(mask_token.astype(x.dtype), (len(x), hidden, self.dim))
        patches = jnp.concatenate([x[:, prefix:], token], axis=1)
        patches = jnp.take_along_axis(patches, places[..., None], axis=1)
        x = jnp.concatenate([x[:, :prefix], patches], axis=1) + positions.astype(x.dtype)
        options = BlockOptions(act=self.act, norm_eps=self.norm_eps, dtype=self.dtype)
        sequences = options.sequences(self, x, self.num_heads, biased=False, train=train)
        x = sequences.pad(x)
        for i in range(self.depth):
            x = Block(options, self.num_heads, _MLP_RATIO * self.dim, name=f"block_{i}")(
                x, 0.0, sequences=sequences, train=train
            )
        x = sequences.cut(x)
        x = LayerNorm(self.norm_eps, self.dtype, name="norm")(x)
        x = nn.Dense(self.pixels, dtype=self.dtype, name="pred")(x[:, prefix:])
        return x.astype(jnp.float32)


class MAE(MaskedModel):
    """A masked autoencoder around a ViT (section 3): mean squared error on the hidden patches.

    The share `mask_ratio` of the patches, drawn for each image separately, is left out of the
    encoder. With `norm_pix` targets are the pixels by their patch's mean and deviation (section 4),
    else as they are. Positions are fixed: the encoder's table starts as sin-cos and is not trained
    here, so that its parameters are any ViT's.
    """

    mask_ratio: float = 0.75
    norm_pix: bool = True
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    @property
    def units(self) -> Size:
        """The grid of what is hidden or not, (height, width)."""
        return self.grid

    @property
    def visible(self) -> int:
        """The number of patches of an image that the encoder sees."""
        return int(self.grid[0] * self.grid[1] * (1 - self.mask_ratio))

    @property
    def hidden(self) -> int:
        """The number of hidden patches of an image."""
        return self.grid[0] * self.grid[1] - self.visible

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others, or the encoder."""
        encoder = self.encoder
        if not isinstance(encoder, ViT):
            raise UserError(
                f"pretrain.method='mae' needs a ViT, because {type(encoder).__name__} cannot "
                "leave tokens out; use 'simmim'."
            )
        faults = self.check_encoder()
        if (encoder.pos_embed, encoder.pos_embed_at) != ("learned", "input"):
            faults.append("positions must be one table: pos_embed='learned', pos_embed_at='input'")
        if encoder.rope_type == "mixed":
            faults.append("rope_type='mixed' rotates whole grids, and the encoder sees a part")
        if not 0 < self.visible < self.grid[0] * self.grid[1]:
            faults.append(
                f"mask_ratio={self.mask_ratio} leaves {self.visible} of "
                f"{self.grid[0] * self.grid[1]} patches"
            )
        if self.decoder_dim % self.decoder_heads or self.decoder_dim % 4:
            faults.append(
                f"decoder_dim={self.decoder_dim} must be a multiple of 4 and of "
                f"decoder_heads={self.decoder_heads}"
            )
        faults.check("mae: ")

    def setup(self) -> None:
        """Creates what is not the encoder's; runs `check` first."""
        self.check()
        encoder = self.encoder
        p, q = pair(encoder.patch_size)
        shape = (1, 1, self.decoder_dim)
        self.mask_token = self.param("mask_token", _TOKEN_INIT, shape, jnp.float32)
        self.decoder = Decoder(
            dim=self.decoder_dim,
            depth=self.decoder_depth,
            num_heads=self.decoder_heads,
            act=encoder.act,
            norm_eps=encoder.norm_eps,
            pixels=p * q * self.in_chans,
            dtype=self.dtype,
        )

    def __call__(
        self,
        images: Float[Array, "b h w channels"],
        masks: Bool[Array, "b i j"] | None = None,
        *,
        train: bool = False,
    ) -> Reconstruction:
        """Leaves patches of normalised images out and predicts their pixels; see `MaskedModel`.

        Of each image as many are visible as `visible` says.
        """
        patch = pair(self.encoder.patch_size)
        if masks is None:
            masks = self.draw(self.make_rng("mask"), len(images))
        hidden = masks.reshape(len(images), -1)
        order = hidden.argsort(-1, stable=True)  # the visible ones first
        x = self.encoder.embed_patches(images)
        x = self.encoder.encode_visible(x, order[:, : self.visible], train=train)
        predicted = self.decoder(
            x, order.argsort(-1), self.mask_token, self.decoder_positions(), train=train
        )
        if self.is_initializing():
            self._fix_positions()
        target = cut_patches(images, patch)
        mean: Array | float = 0.0
        deviation: Array | float = 1.0
        if self.norm_pix:
            mean = target.mean(-1, keepdims=True)
            deviation = jnp.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
        error = ((predicted - (target - mean) / deviation) ** 2).mean(-1)
        loss = (error * hidden).sum(-1) / hidden.sum(-1)
        painted = join_patches(predicted * deviation + mean, patch, grid=self.grid)
        pixels = enlarge(masks, patch)[..., None]
        return Reconstruction(loss, jnp.where(pixels, painted, images), masks)

    def decoder_positions(self) -> Float[np.ndarray, "1 m d"]:
        """Returns the fixed positions of the decoder's tokens."""
        return self._positions(self.decoder_dim)

    def _positions(self, embed_dim: int) -> Float[np.ndarray, "1 m c"]:
        prefix = self.encoder.num_prefix_tokens
        return fixed_positions(self.grid, prefix=prefix, embed_dim=embed_dim)

    def _fix_positions(self) -> None:
        """Puts the fixed embeddings in the place of what the encoder drew."""
        table = self._positions(self.encoder.embed_dim)
        if self.encoder.no_embed_class:
            table = table[:, self.encoder.num_prefix_tokens :]
        self.encoder.put_variable("params", "pos_embed", jnp.asarray(table))

"""SimMIM (arXiv:2111.09886): hidden patches become one learned token, and one layer paints pixels.

Axes: b batch, h w image, i j patch grid, c channels of an image.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float

from vitswin_jax.core.choices import near_multiples
from vitswin_jax.models.masked import MaskedModel, Reconstruction, enlarge
from vitswin_jax.nn.layers import pair
from vitswin_jax.nn.relative import table_init
from vitswin_jax.nn.sides import Size


def local_statistics(
    images: Float[Array, "b h w c"], window: int
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Returns each pixel's mean and deviation over the square of `window` pixels around it.

    Of the square, the part in the image counts; the variance divides by one pixel less, is at least
    0 and has 1e-6 added.
    """

    def summed(x: Array) -> Array:
        for shape in ((1, window, 1, 1), (1, 1, window, 1)):
            x = lax.reduce_window(x, 0.0, lax.add, shape, (1, 1, 1, 1), "SAME")
        return x

    count = summed(jnp.ones_like(images[:1, ..., :1]))
    mean = summed(images) / count
    variance = (summed(images**2) / count - mean**2) * (count / (count - 1))
    return mean, jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-6)


class SimMIM(MaskedModel):
    """SimMIM around a ViT or a Swin (section 3): masked as squares, L1 on the hidden pixels.

    `mask_patch` is the side of what is hidden or not, in pixels, of which the share `mask_ratio`,
    rounded up, is hidden. With `norm_window`, odd, targets are pixels by the mean and the deviation
    of the square around them, as Swin V2's giant was trained (arXiv:2206.04664); else as they are.
    """

    mask_patch: int = 32
    mask_ratio: float = 0.6
    norm_window: int | None = None

    @property
    def units(self) -> Size:
        """The grid of what is hidden or not, (height, width)."""
        h, w = self.img_size
        return h // self.mask_patch, w // self.mask_patch

    @property
    def hidden(self) -> int:
        """The number of hidden units."""
        return math.ceil(self.units[0] * self.units[1] * self.mask_ratio)

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others, or the encoder."""
        side, patch, stride = self.mask_patch, pair(self.encoder.patch_size), self.stride
        h, w = self.img_size
        faults = self.check_encoder()
        if h % stride[0] or w % stride[1]:
            near = f"as {near_multiples((h, w), stride)} are"
            p, q = stride
            faults.append(f"img_size={h}x{w} is no multiple of the stride {p}x{q}, {near}")
        if side < 1 or h % side or w % side or side % patch[0] or side % patch[1]:
            faults.append(
                f"mask_patch={side} must divide img_size={h}x{w} and be a multiple of "
                f"patch_size={patch[0]}x{patch[1]}"
            )
        elif not 0 < self.mask_ratio <= 1:
            faults.append(f"mask_ratio={self.mask_ratio} must be above 0 and at most 1")
        if self.norm_window is not None and (self.norm_window < 3 or self.norm_window % 2 == 0):
            faults.append(f"norm_window={self.norm_window} must be odd, and at least 3")
        faults.check("simmim: ")

    def setup(self) -> None:
        """Creates what is not the encoder's; runs `check` first."""
        self.check()
        shape = (1, 1, self.encoder.embed_dim)
        self.mask_token = self.param("mask_token", table_init, shape, jnp.float32)
        p, q = self.stride
        self.decoder = nn.Conv(p * q * self.in_chans, (1, 1), dtype=self.dtype)

    def __call__(
        self,
        images: Float[Array, "b h w channels"],
        masks: Bool[Array, "b i j"] | None = None,
        *,
        train: bool = False,
    ) -> Reconstruction:
        """Hides patches of normalised images and predicts their pixels; see `MaskedModel`."""
        patch = pair(self.encoder.patch_size)
        if masks is None:
            masks = self.draw(self.make_rng("mask"), len(images))
        x = self.encoder.embed_patches(images)
        x = jnp.where(masks[..., None], self.mask_token[None].astype(x.dtype), x)
        x = self.decoder(self.encoder.encode_map(x, train=train)).astype(jnp.float32)
        # The order of channels is that of PyTorch's PixelShuffle.
        p, q = self.stride
        predicted = rearrange(x, "b i j (c p q) -> b (i p) (j q) c", p=p, q=q)
        mean, deviation = (
            (0.0, 1.0) if self.norm_window is None else local_statistics(images, self.norm_window)
        )
        pixels = enlarge(masks, patch)[..., None]
        error = jnp.abs(predicted - (images - mean) / deviation).mean(-1, keepdims=True)
        loss = (error * pixels).sum((1, 2, 3)) / jnp.maximum(pixels.sum((1, 2, 3)), 1)
        return Reconstruction(loss, jnp.where(pixels, predicted * deviation + mean, images), masks)

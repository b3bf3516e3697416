"""The ResNet in front of the hybrid ViTs: BiT's, post-activation (arXiv:1912.11370; ViT, 3.1).

Convolutions have weight standardisation and no bias, norms are GroupNorm in 32 groups, and padding
is TensorFlow's SAME. Axes: b batch, h w image or map, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

GROUPS = 32
ROOT_WIDTH = 64
EXPANSION = 4  # of a bottleneck's output over its width


class StdConv(nn.Module):
    """A convolution whose kernel is standardised for every output (arXiv:1903.10520, eq. 7).

    The kernel is divided by √(variance + `var_eps`) + `std_eps`; each original sets one of the two.
    """

    features: int
    size: int
    stride: int
    var_eps: float
    std_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        """Returns a map with sides divided by the stride, rounded up."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
        variance = (kernel**2).mean((0, 1, 2), keepdims=True)
        kernel = kernel / (jnp.sqrt(variance + self.var_eps) + self.std_eps)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


@dataclass(frozen=True)
class Numerics:
    """Differences between the originals, the epsilons, and the dtype of the computation."""

    group_norm_eps: float
    weight_var_eps: float
    weight_std_eps: float
    dtype: DTypeLike

    def conv(self, features: int, size: int, stride: int, name: str) -> StdConv:
        """Creates a convolution."""
        eps = self.weight_var_eps, self.weight_std_eps
        return StdConv(features, size, stride, *eps, self.dtype, name=name)

    def norm(self, name: str) -> nn.GroupNorm:
        """Creates a norm, whose variance takes two passes as `layers.LayerNorm`'s does."""
        return nn.GroupNorm(
            GROUPS,
            epsilon=self.group_norm_eps,
            use_fast_variance=False,
            dtype=self.dtype,
            name=name,
        )


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, normed, and a shortcut; ReLU after the sum."""

    width: int
    stride: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        """Returns a map of `stride` times smaller sides and 4 `width` channels."""
        conv, norm, out = self.numerics.conv, self.numerics.norm, EXPANSION * self.width
        y = jax.nn.relu(norm("norm1")(conv(self.width, 1, 1, "conv1")(x)))
        y = jax.nn.relu(norm("norm2")(conv(self.width, 3, self.stride, "conv2")(y)))
        y = norm("norm3")(conv(out, 1, 1, "conv3")(y))
        if x.shape[-1] != out or self.stride != 1:
            x = norm("downsample_norm")(conv(out, 1, self.stride, "downsample_conv")(x))
        return jax.nn.relu(x + y)


class ResNetStage(nn.Module):
    """Bottlenecks at one resolution; the first has the stride."""

    depth: int
    width: int
    stride: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        """Applies them one after another."""
        for i in range(self.depth):
            stride = 1 if i else self.stride
            x = Bottleneck(self.width, stride, self.numerics, name=f"block_{i}")(x)
        return x


class ResNet(nn.Module):
    """Root convolution, max pooling and stages: maps of stride 4, doubled by every further stage.

    `layers` are the stages' depths; () is the root alone.
    """

    layers: tuple[int, ...]
    numerics: Numerics

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b _ _ d"]:
        """Returns the last stage's map."""
        x = self.numerics.conv(ROOT_WIDTH, 7, 2, "root_conv")(images)
        x = jax.nn.relu(self.numerics.norm("root_norm")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, depth in enumerate(self.layers):
            x = ResNetStage(
                depth, ROOT_WIDTH * 2**i, 2 if i else 1, self.numerics, name=f"stage_{i}"
            )(x)
        return x


def total_stride(layers: tuple[int, ...] | None) -> int:
    """Returns how many pixels a side of the last map's cells spans: 1 without a ResNet, None."""
    return 1 if layers is None else 4 * 2 ** max(len(layers) - 1, 0)

"""Layers of all families: norms, linear layer, patch embedding, stochastic depth, head."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn import xla
from vitswin_jax.nn.forms import forms
from vitswin_jax.nn.sides import Size


def pair(size: int | Size) -> Size:
    """Returns (height, width) for a size given as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def unit(x: Float[Array, "*b d"], *, axis: int = -1) -> Float[Array, "*b d"]:
    """Returns x / max(|x|, 1e-12) in float32; finite, and so its gradient, at 0: pad tokens."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis, keepdims=True), 1e-24))


class LayerNorm(nn.Module):
    """Layer normalisation in float32 (arXiv:1607.06450, eq. 4); parameters `scale` and `bias`."""

    epsilon: float
    dtype: DTypeLike
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Returns x with mean 0 and variance 1 over c, times `scale`, plus `bias`."""
        c = x.shape[-1:]
        scale = self.param("scale", self.scale_init, c, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), c, jnp.float32)
        scale, bias = jnp.asarray(scale), jnp.asarray(bias)  # loaded parameters are NumPy's
        y = xla.layer_norm(xla.rows(x), scale, bias, self.epsilon)
        return y.reshape(x.shape).astype(self.dtype)


NORMS: dict[str, type[LayerNorm] | type[nn.RMSNorm]] = {
    "layernorm": LayerNorm,
    "rmsnorm": nn.RMSNorm,  # arXiv:1910.07467, eq. 4; parameter `scale`, computed in float32
}
"""`norm_layer` -> its module; both take epsilon and dtype."""


class Linear(nn.Module):
    """An einsum of act(x) with a learned kernel, plus a bias.

    Parameters: `kernel` of `shape`, and `bias` of the kernel's axes in the output. With `train`,
    the backward pass keeps x only (`xla.product_keeping_input`), and forward-mode differentiation
    (jax.jvp) is refused, as of any jax.custom_vjp.
    """

    shape: tuple[int, ...]
    equation: str  # of x and the kernel, as jnp.einsum takes it
    act: Callable[[Array], Array] | None = None  # elementwise
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*inputs"], *, bias: Array | None = None, train: bool
    ) -> Float[Array, "*outputs"]:
        """Returns the product in `dtype`; `bias` takes the place of a bias of its own."""
        kernel = self.param("kernel", self.kernel_init, self.shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        if bias is None and self.use_bias:
            inputs, axes = self.equation.split("->")[0].split(",")
            out = [n for axis, n in zip(axes, self.shape, strict=True) if axis not in inputs]
            bias = self.param("bias", self.bias_init, tuple(out), jnp.float32)
        if bias is not None:
            bias = jnp.asarray(bias, self.dtype)
        return xla.linear(self.equation, self.act, x, kernel, bias, train=train)


class JointLinear(nn.Module):
    """Several linear layers of one input, stored as one: `kernel` (c, n, *out), `bias` (n, *out).

    The parameters are those of a `Linear` of the same shape; the outputs come one by one, each in
    memory of its own, as kernels that take several arrays want them.
    """

    shape: tuple[int, ...]
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch c"], *, bias: Array | None = None, train: bool
    ) -> tuple[Array, ...]:
        """Returns n arrays (*batch, *out) in `dtype`; `bias` is in place of a bias of its own."""
        kernel = self.param("kernel", self.kernel_init, self.shape, jnp.float32)
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
        if bias is None and self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), self.shape[1:], jnp.float32)
        each = [None] * self.shape[1] if bias is None else list(jnp.asarray(bias, self.dtype))
        one = functools.partial(xla.linear, "...c,chd->...hd", None, x, train=train)
        return tuple(one(kernel=kernel[:, i], bias=each[i]) for i in range(self.shape[1]))


def check_channels(images: Float[Array, "b h w c"], in_chans: int) -> None:
    """Raises UserError for images of other channels than the model's."""
    if images.shape[-1] != in_chans:
        raise UserError(
            f"the images have {images.shape[-1]} channels (the last axis), but the model takes "
            f"in_chans={in_chans}."
        )


def check_stem(stem: tuple[int, ...], patch_size: tuple[int, int]) -> list[str]:
    """Returns a line for each fault of a model's field `stem`, and otherwise none."""
    if any(width < 1 for width in stem):
        return [f"stem={stem} must have widths of at least 1"]
    stride = ConvStem.stride_of(stem)
    if stem and any(side % stride for side in patch_size):
        shown, halvings = "x".join(map(str, patch_size)), stride.bit_length() - 1
        return [
            f"stem={stem} halves the map {halvings} time(s), so patch_size={shown} must be a "
            f"multiple of {stride}"
        ]
    return []


class ConvStem(nn.Module):
    """3x3 convolutions before the patches, each with a norm and a GELU (arXiv:2106.14881).

    A convolution that is wider than the one before halves the map, and the others keep its size.
    The norm is LayerNorm over the channels, because a BatchNorm has state.
    """

    widths: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @staticmethod
    def strides_of(widths: tuple[int, ...]) -> list[int]:
        """Returns the stride of each convolution."""
        before = (*widths[:1], *widths)
        return [2 if width > last else 1 for last, width in zip(before, widths, strict=False)]

    @staticmethod
    def stride_of(widths: tuple[int, ...]) -> int:
        """Returns the number of pixels along a side of a cell of the last map."""
        return math.prod(ConvStem.strides_of(widths))

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """Returns the last map; the stride must divide the sides of the images."""
        strides = self.strides_of(self.widths)
        for i, (width, stride) in enumerate(zip(self.widths, strides, strict=True)):
            x = nn.Conv(
                width,
                (3, 3),
                strides=stride,
                padding=1,
                use_bias=False,
                dtype=self.dtype,
                name=f"conv_{i}",
            )(x)
            x = xla.gelu(LayerNorm(1e-6, self.dtype, name=f"norm_{i}")(x))
        return x


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects them (ViT, eq. 1): a strided convolution.

    With `stem`, the widths of a `ConvStem`, patches are of its map. They have `patch_size` pixels
    of the image all the same.
    """

    patch_size: tuple[int, int]
    embed_dim: int
    norm_eps: float | None = None  # of a norm after the projection; None: no norm
    norm_layer: str = "layernorm"
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    stem: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """Returns a map of (h / patch, w / patch) embedded patches.

        Pixels at the right and at the bottom that fill no patch are left out.
        """
        (p, q), (h, w) = self.patch_size, images.shape[1:3]
        x = images[:, : h // p * p, : w // q * q]
        if self.stem:
            x = ConvStem(self.stem, self.dtype, name="stem")(x)
        x = (self._product if forms().patches == "product" else self._convolution)(x)
        if self.norm_eps is not None:
            x = NORMS[self.norm_layer](self.norm_eps, self.dtype, name="norm")(x)
        return x

    @property
    def _cells(self) -> tuple[int, int]:
        """The sides of a patch in cells of the stem's map; without a stem, in pixels."""
        p, q = self.patch_size
        stride = ConvStem.stride_of(self.stem)
        return p // stride, q // stride

    def _product(self, images: Array) -> Float[Array, "b i j d"]:
        """Returns the product of each patch with the kernel, as the paper has it."""
        p, q = self._cells
        patches = rearrange(images, "b (i p) (j q) c -> b i j p q c", p=p, q=q)
        return Linear(
            (p, q, images.shape[-1], self.embed_dim),
            "...pqc,pqcd->...d",
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="proj",
        )(patches, train=False)

    def _convolution(self, images: Array) -> Float[Array, "b i j d"]:
        return nn.Conv(
            self.embed_dim,
            self._cells,
            strides=self._cells,
            padding="VALID",
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="proj",
        )(images)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole examples (arXiv:1603.09382)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, b * rest], rate: float | Float[Array, ""], *, train: bool
    ) -> Float[Array, b * rest]:
        """Zeroes examples with probability `rate` and scales the others by 1 / (1 - rate)."""
        if not train or (isinstance(rate, float) and rate == 0.0):
            return x
        keep = 1.0 - rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros_like(x))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT, eq. 5)."""

    init_value: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Returns x times `gamma` (c,)."""
        init = nn.initializers.constant(self.init_value)
        gamma = self.param("gamma", init, x.shape[-1:], jnp.float32)
        return x * jnp.expand_dims(gamma.astype(self.dtype), range(x.ndim - 1))


def create_head(num_classes: int, name: str | None = None) -> nn.Dense:
    """Creates the classifier: zero at the start, so that fresh logits are equal; always float32."""
    return nn.Dense(
        num_classes, kernel_init=nn.initializers.zeros_init(), dtype=jnp.float32, name=name
    )

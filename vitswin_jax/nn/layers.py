"""What the families share: patch embedding, MLP, stochastic depth, layer scale, the head."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.types import UserError
from vitswin_jax.nn.linear import Linear


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x Φ(x), Φ the normal distribution (arXiv:1606.08415), by erf as PyTorch does.

    Computed in float32: next to 1 bfloat16 has no place for erf's tail. jax.nn.gelu takes erfc,
    which is as exact at three times the time on CPU. Of a forward pass only the slope is kept.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = _gelu_and_slope(primals[0])
    return value, slope * tangents[0]


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    below = 0.5 * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    # From -6 on float32's erf is -1. Said so, -inf gives 0 and no NaN; and a selection is what
    # XLA's CPU backend leaves to LLVM. The arithmetic alone it gives, with the products around it,
    # to YNNPACK, for which it writes 0.5, 1 and √½ out as three arrays of the size of x.
    value = jnp.where(wide < -20.0, 0.0, wide * below)
    return value.astype(x.dtype), (below + wide * density).astype(x.dtype)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _swiglu(x: Array) -> Array:
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,  # every PyTorch original
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # Google's JAX code
    "quick_gelu": _quick_gelu,  # OpenAI's CLIP
    "swiglu": _swiglu,  # DINOv2's giant; gated, so half as wide behind (arXiv:2002.05202)
}


def activation(name: str) -> Callable[[Array], Array]:
    """Returns the activation called `name`; raises UserError for one that is unknown."""
    if name not in ACTIVATIONS:
        raise UserError(f"act={name!r} is unknown; it is one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) for a size given as one number or as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class LayerNorm(nn.Module):
    """Layer normalisation (arXiv:1607.06450, eq. 4) in float32, with parameters `scale` and `bias`.

    Its variance takes two passes, as accurate as the originals'. Of a forward pass it keeps the
    standardised input alone; nn.LayerNorm keeps two arrays of that size.
    """

    epsilon: float
    dtype: DTypeLike
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Returns x with mean 0 and variance 1 over c, times `scale`, plus `bias`."""
        c = x.shape[-1:]
        scale = self.param("scale", self.scale_init, c, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), c, jnp.float32)
        scale, bias = jnp.asarray(scale), jnp.asarray(bias)  # what is loaded is NumPy's
        y = _normalize(rows(x).astype(jnp.float32), scale, bias, self.epsilon)
        return y.reshape(x.shape).astype(self.dtype)


def rows(x: Float[Array, "*batch c"]) -> Float[Array, "n c"]:
    """Returns all tokens of all images, one a row.

    What acts on each token by itself is given rows: of maps XLA's CPU backend makes slower programs
    (a norm and an MLP of Swin's first stage take 1.7 times as long on b h w c).
    """
    return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _normalize(
    x: Float[Array, "n c"], scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float
) -> Float[Array, "n c"]:
    return _standardize(x, epsilon)[0] * scale[None] + bias[None]


@_normalize.defjvp
def _normalize_tangent(
    epsilon: float, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    standard, inverse = _standardize(x, epsilon)
    standard = _store(standard)
    along = (standard * dx).mean(-1, keepdims=True)
    dstandard = (dx - dx.mean(-1, keepdims=True) - standard * along) * inverse
    value = standard * scale[None] + bias[None]
    return value, dstandard * scale[None] + standard * dscale[None] + dbias[None]


def _standardize(x: Array, epsilon: float) -> tuple[Float[Array, "n c"], Float[Array, "n 1"]]:
    centred = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


@jax.custom_jvp
def store_gradient(x: Array) -> Array:
    """Returns x, and on CPU has XLA store the gradient of x before anything reads it.

    For the stream that residual branches are added to. Its gradient at a block is that of the block
    behind it and one summand more; left alone, XLA fuses the sum anew into each of its readers, and
    so block after block adds up all that are behind it: depth² work, in the program's size too.
    """
    return x


@store_gradient.defjvp
def _store_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return x, _store(tangent)


def _store(x: Array) -> Array:
    """Returns x, and on CPU has XLA store it: its readers do not each compute it again."""
    return jax.lax.platform_dependent(x, cpu=_divide_by_one, default=lambda x: x)


def _divide_by_one(x: Array) -> Array:
    """Returns x. XLA computes no division twice, and LLVM then removes this one.

    An optimization_barrier alone is gone before XLA's CPU backend fuses; round the divisor it hides
    the 1 from what simplifies before.
    """
    return x / jax.lax.optimization_barrier(jnp.ones_like(x))


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects them: a strided convolution (ViT, eq. 1)."""

    patch_size: tuple[int, int]
    embed_dim: int
    norm_eps: float | None = None  # of a norm behind the projection; None: no norm
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """Returns a map of (h / patch, w / patch) embedded patches."""
        x = nn.Conv(
            self.embed_dim,
            self.patch_size,
            strides=self.patch_size,
            padding="VALID",
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="proj",
        )(images)
        if self.norm_eps is not None:
            x = LayerNorm(self.norm_eps, self.dtype, name="norm")(x)
        return x


class Mlp(nn.Module):
    """Two dense layers with an activation between them (Transformer, section 3.3)."""

    hidden_dim: int
    act: str = "gelu"
    drop_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.normal(1e-6)
    use_out_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"], *, train: bool) -> Float[Array, "*batch c"]:
        """Applies fc1, the activation and fc2, each followed by dropout in training."""
        width, act = x.shape[-1], activation(self.act)
        linear = functools.partial(
            Linear, kernel_init=self.kernel_init, bias_init=self.bias_init, dtype=self.dtype
        )
        shape = (width, self.hidden_dim)
        y = linear(shape, "nc,cd->nd", name="fc1")(rows(x), train=train)
        gated = jax.eval_shape(act, y).shape != y.shape
        if gated or (train and self.drop_rate):  # then fc2 cannot take act upon itself
            y, act = nn.Dropout(self.drop_rate, deterministic=not train)(act(y)), None
        shape = (y.shape[-1], width)
        fc2 = linear(shape, "nc,cd->nd", act, use_bias=self.use_out_bias, name="fc2")
        y = fc2(y, train=train)
        return nn.Dropout(self.drop_rate, deterministic=not train)(y).reshape(x.shape)


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

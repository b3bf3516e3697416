"""Swin Transformer (arXiv:2103.14030): windows, shifted windows, a pyramid of stages.

Axes: b batch, h w map or image, n tokens of a window, c channels, k classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.models.attention import SelfAttention
from vitswin_jax.models.blocks import apply_blocks, drop_path_schedule
from vitswin_jax.models.layers import DropPath, Mlp, PatchEmbed, create_head, layer_norm, pair
from vitswin_jax.models.windows import (
    Size,
    fit_window,
    map_windows,
    pad_to_multiple,
    relative_position_index,
)
from vitswin_jax.types import UserError

kernel_init = nn.initializers.truncated_normal(0.02)


class WindowAttention(SelfAttention):
    """Attention in windows, softmax(q kᵀ / √d + B) v (Swin, eq. 4)."""

    window_size: Size = (7, 7)

    def position_bias(self) -> Float[Array, "heads n n"]:
        """Returns B: rows of the learned table, by the relative position of query and key."""
        rows = (2 * self.window_size[0] - 1) * (2 * self.window_size[1] - 1)
        shape = (rows, self.num_heads)
        table = self.param("relative_position_bias_table", kernel_init, shape, jnp.float32)
        return jnp.moveaxis(table[relative_position_index(self.window_size)], -1, 0)


class SwinBlock(nn.Module):
    """A pre-norm block whose attention stays in windows (Swin, eq. 3)."""

    num_heads: int
    window_size: Size
    shift: Size
    mlp_ratio: float
    qkv_bias: bool
    act: str
    norm_eps: float
    pad_before_roll: bool
    drop_rate: float
    attn_drop_rate: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], drop_path: float | Float[Array, ""], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Adds window attention, then the MLP, each dropped with probability `drop_path`."""
        attention = WindowAttention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            proj_drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
            kernel_init=kernel_init,
            window_size=self.window_size,
            dtype=self.dtype,
            name="attn",
        )
        y = layer_norm(self.norm_eps, self.dtype, name="norm1")(x)
        y = map_windows(
            lambda windows, mask: attention(windows, mask, train=train),
            y,
            window_size=self.window_size,
            shift=self.shift,
            pad_before_roll=self.pad_before_roll,
        )
        x = x + DropPath()(y, drop_path, train=train)
        y = layer_norm(self.norm_eps, self.dtype, name="norm2")(x)
        y = Mlp(
            round(x.shape[-1] * self.mlp_ratio),
            self.act,
            self.drop_rate,
            kernel_init=kernel_init,
            bias_init=nn.initializers.zeros_init(),
            dtype=self.dtype,
            name="mlp",
        )(y, train=train)
        return x + DropPath()(y, drop_path, train=train)


class PatchMerging(nn.Module):
    """Halves the map: 2x2 neighbourhoods are concatenated, normed and projected to 2c channels."""

    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """Pads odd maps with zeros; takes (0, 0), (1, 0), (0, 1), (1, 1) as (row, column)."""
        x = pad_to_multiple(x, (2, 2))
        x = rearrange(x, "b (h row) (w column) c -> b h w (column row c)", row=2, column=2)
        x = layer_norm(self.norm_eps, self.dtype, name="norm")(x)
        return nn.Dense(
            x.shape[-1] // 2,
            use_bias=False,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="reduction",
        )(x)


class BlockPair(nn.Module):
    """A windowed block and the shifted one behind it: what a scan repeats."""

    block: Callable[..., nn.Module]  # takes shift and name
    shift: Size

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], drop_path: Float[Array, "2"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        """Applies both, each with its own rate."""
        x = self.block(shift=(0, 0), name="block_0")(x, drop_path[0], train=train)
        return self.block(shift=self.shift, name="block_1")(x, drop_path[1], train=train)


class Stage(nn.Module):
    """Blocks at one resolution, windowed and shifted in turn, then the merging to the next."""

    block: Callable[..., nn.Module]  # takes shift and name
    shift: Size
    rates: tuple[float, ...]  # stochastic depth, one a block
    merging: Callable[..., nn.Module] | None  # takes name
    remat: bool | str
    scan: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b i j d"], Float[Array, "b h w c"]]:
        """Returns the map for the next stage, and the one before merging."""
        depth = len(self.rates)
        scanned = depth // 2 * 2 if self.scan else 0  # an odd last block stands alone
        if scanned:
            pairs = BlockPair(self.block, self.shift, name="pairs")
            rates = list(zip(self.rates[:scanned:2], self.rates[1:scanned:2], strict=True))
            x, _ = apply_blocks(pairs, x, rates, train=train, remat=self.remat)
        rest = [
            self.block(shift=self.shift if i % 2 else (0, 0), name=f"block_{i}")
            for i in range(scanned, depth)
        ]
        x, _ = apply_blocks(rest, x, self.rates[scanned:], train=train, remat=self.remat)
        return (x if self.merging is None else self.merging(name="downsample")(x)), x


class Swin(nn.Module):
    """Swin Transformer: patches, four stages of windowed blocks, mean, head (Swin, fig. 3).

    Sizes are in `variants.py`. `window_size` is (height, width) or one number; how it is fitted to
    `img_size` where a stage's map is smaller is `window_clip` (`windows.WINDOW_CLIPS`). Images of
    another size are padded to the windows decided at creation. `ape` adds a learned absolute
    position embedding behind the patch norm, and then images must have `img_size`.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | tuple[int, int] = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    act: str = "gelu"
    norm_eps: float = 1e-5
    ape: bool = False
    patch_norm: bool = True
    window_clip: str = "per_axis"
    pad_before_roll: bool = True
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    remat: bool | str = "none"
    scan: bool = False
    dtype: DTypeLike = jnp.float32

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        wrong = []
        if len(self.depths) != len(self.num_heads):
            wrong.append(f"depths={self.depths} and num_heads={self.num_heads} differ in length")
        for stage, heads in enumerate(self.num_heads):
            if (dim := self.embed_dim * 2**stage) % heads:
                wrong.append(f"stage {stage}'s width {dim} is no multiple of its {heads} heads")
        if min(*pair(self.img_size), *pair(self.window_size), *pair(self.patch_size)) < 1:
            wrong.append("img_size, window_size and patch_size must be at least 1")
        if wrong:
            raise UserError("; ".join(wrong) + ".")

    @property
    def resolutions(self) -> tuple[Size, ...]:
        """Each stage's map, (height, width) in tokens, for images of `img_size`."""
        (h, w), (p, q) = pair(self.img_size), pair(self.patch_size)
        h, w = -(-h // p), -(-w // q)
        return tuple((-(-h // 2**stage), -(-w // 2**stage)) for stage in range(len(self.depths)))

    def setup(self) -> None:
        """Creates the submodules and parameters; runs `check` first."""
        self.check()
        eps = self.norm_eps
        self.patch_embed = PatchEmbed(
            pair(self.patch_size),
            self.embed_dim,
            eps if self.patch_norm else None,
            dtype=self.dtype,
        )
        if self.ape:
            shape = (1, *self.resolutions[0], self.embed_dim)
            self.position = self.param("absolute_pos_embed", kernel_init, shape, jnp.float32)
        self.embed_drop = nn.Dropout(self.drop_rate)
        rates = drop_path_schedule(self.drop_path_rate, sum(self.depths))
        first = [sum(self.depths[:stage]) for stage in range(len(self.depths))]
        self.stage = [
            self._stage(stage, rates[first[stage] : first[stage] + depth])
            for stage, depth in enumerate(self.depths)
        ]
        self.norm = layer_norm(eps, self.dtype)
        if self.num_classes:
            self.head = create_head(self.num_classes)

    def _stage(self, stage: int, rates: tuple[float, ...]) -> Stage:
        window, shift = fit_window(
            self.resolutions[stage], pair(self.window_size), window_clip=self.window_clip
        )
        block = functools.partial(
            SwinBlock,
            num_heads=self.num_heads[stage],
            window_size=window,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            act=self.act,
            norm_eps=self.norm_eps,
            pad_before_roll=self.pad_before_roll,
            drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
            dtype=self.dtype,
        )
        merging = functools.partial(PatchMerging, self.norm_eps, self.dtype)
        last = stage == len(self.depths) - 1
        return Stage(block, shift, rates, None if last else merging, self.remat, self.scan)

    def __call__(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b k"]:
        """Classifies normalised images of any size: float32 logits, or features without a head."""
        x = self.features(images, train=train)
        return self.head(x) if self.num_classes else x

    def features(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b c"]:
        """Returns what the head reads: the mean of the normed last map, float32."""
        x = self.norm(self.feature_maps(images, train=train)[-1])
        return x.mean((1, 2)).astype(jnp.float32)

    def feature_maps(
        self,
        images: Float[Array, "b h w channels"],
        *,
        train: bool = False,
        blocks: tuple[int, ...] | None = None,
    ) -> tuple[Float[Array, "b h w c"], ...]:
        """Returns the map behind the last block of each stage of `blocks` (default: all stages).

        Maps are before merging and not normed. Raises UserError where `ape` forbids the size.
        """
        x = self.patch_embed(pad_to_multiple(images, pair(self.patch_size)))
        if self.ape:
            if x.shape[1:3] != self.position.shape[1:3]:
                size = "x".join(map(str, images.shape[1:3]))
                raise UserError(
                    f"the images are {size}, and with ape=True the model takes only "
                    f"img_size={self.img_size}."
                )
            x = x + self.position.astype(x.dtype)
        x = self.embed_drop(x, deterministic=not train)
        maps = []
        for stage in self.stage:
            x, before_merging = stage(x, train=train)
            maps.append(before_merging)
        return tuple(maps) if blocks is None else tuple(maps[i] for i in blocks)

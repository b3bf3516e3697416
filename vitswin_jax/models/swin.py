"""Swin Transformer (arXiv:2103.14030): windows, shifted windows, a pyramid of stages.

Axes: b batch, h w map or image, n tokens of a window, c channels, k classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.choices import Faults, divisors, wrong_choice
from vitswin_jax.core.types import UserError
from vitswin_jax.models.geometry import BlockGeometry, Geometry, Outputs
from vitswin_jax.models.stages import PatchMerging, Stage
from vitswin_jax.models.swin_block import SwinBlock, UnbiasedWindowAttention, WindowAttention
from vitswin_jax.nn.block import BlockOptions
from vitswin_jax.nn.execution import FOR_WINDOWS
from vitswin_jax.nn.layers import (
    LayerNorm,
    PatchEmbed,
    check_channels,
    check_stem,
    create_head,
    pair,
)
from vitswin_jax.nn.mlp import Mlp, check_gates
from vitswin_jax.nn.relative import table_init
from vitswin_jax.nn.scan import drop_path_schedule
from vitswin_jax.nn.sides import Size
from vitswin_jax.nn.windows import Cut, fit_window, pad_to_multiple


def per_stage(
    size: int | tuple[int, int] | tuple[tuple[int, int], ...], stages: int
) -> tuple[Size, ...]:
    """Returns each stage's size, given one for all (a number or a pair) or pairs, one a stage."""
    if not isinstance(size, int) and isinstance(size[0], tuple):
        return size
    return (pair(size),) * stages


class Swin(nn.Module):
    """Swin Transformer: patches, four stages of windowed blocks, mean, head (Swin, fig. 3).

    Sizes are in `variants.py`. `window_size` is (height, width) or one number; how it is fitted to
    `img_size` where a stage's map is smaller is `window_clip` (`windows.WINDOW_CLIPS`). Images of
    another size are padded to the windows decided at creation. `ape` adds a learned absolute
    position embedding after the patch norm, and then images must have `img_size`. One window size
    per stage (Swin-S3) is a tuple of pairs. `stem` has the widths of 3x3 convolutions before the
    patches (`layers.ConvStem`), for small images and short runs. `shift_windows=False` and
    `relative_bias=False` leave out the shift and the position bias, for ablations (table 4). Only
    native files have these three. `init_std` is of all kernels; the official 0.02 suits widths from
    96 on, and narrower models learn faster from about 1 / sqrt(embed_dim).
    `attn_impl` is "auto" or one of `execution.WINDOWS`: "fused" and "tokamax" for GPUs, "pairs" for
    TPUs.
    """

    _block_class: ClassVar[type[nn.Module]] = SwinBlock
    _norm_last: ClassVar[bool] = False

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | tuple[int, int] | tuple[tuple[int, int], ...] = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    act: str = "gelu"
    norm_eps: float = 1e-5
    ape: bool = False
    patch_norm: bool = True
    stem: tuple[int, ...] = ()
    shift_windows: bool = True
    relative_bias: bool = True
    window_clip: str = "per_axis"
    pad_before_roll: bool = True
    init_std: float = 0.02
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    attn_impl: str = "auto"
    remat: bool | str = "none"
    scan: bool = False
    dtype: DTypeLike = jnp.float32

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        faults = Faults()
        if len(self.depths) != len(self.num_heads):
            faults.append(f"depths={self.depths} and num_heads={self.num_heads} differ in length")
        for stage, heads in enumerate(self.num_heads):
            if (dim := self.embed_dim * 2**stage) % heads:
                faults.append(
                    f"stage {stage}'s width {dim} is no multiple of its {heads} heads, which can "
                    f"be {divisors(dim)}"
                )
        if len(self.window_sizes) != len(self.depths):
            faults.append(
                f"window_size={self.window_size} has not {len(self.depths)} stages' sizes"
            )
        sizes = (pair(self.img_size), pair(self.patch_size), *self.window_sizes)
        if min(side for size in sizes for side in size) < 1:
            faults.append("img_size, window_size and patch_size must be at least 1")
        faults += check_stem(self.stem, pair(self.patch_size))
        faults.need(self.in_chans > 0, f"in_chans={self.in_chans} must be at least 1")
        faults += wrong_choice("attn_impl", self.attn_impl, FOR_WINDOWS)
        faults.need(
            self.relative_bias or type(self)._attention is Swin._attention,
            f"relative_bias=False: {type(self).__name__} cannot do without; only Swin can",
        )
        faults += check_gates(self.act, [self._mlp_dim(stage) for stage in range(len(self.depths))])
        faults.check()

    @property
    def resolutions(self) -> tuple[Size, ...]:
        """Each stage's map, (height, width) in tokens, for images of `img_size`."""
        (h, w), (p, q) = pair(self.img_size), pair(self.patch_size)
        h, w = -(-h // p), -(-w // q)
        return tuple((-(-h // 2**stage), -(-w // 2**stage)) for stage in range(len(self.depths)))

    @property
    def window_sizes(self) -> tuple[Size, ...]:
        """Each stage's window, (height, width), before it is fitted to the stage's map."""
        return per_stage(self.window_size, len(self.depths))

    @nn.nowrap
    def _mlp_dim(self, stage: int) -> int:
        return round(self.embed_dim * 2**stage * self.mlp_ratio)

    @property
    def _kernel_init(self) -> nn.initializers.Initializer:
        return nn.initializers.truncated_normal(self.init_std)

    def setup(self) -> None:
        """Creates the submodules and parameters; runs `check` first."""
        self.check()
        eps = self.norm_eps
        self.patch_embed = PatchEmbed(
            pair(self.patch_size),
            self.embed_dim,
            eps if self.patch_norm else None,
            dtype=self.dtype,
            stem=self.stem,
        )
        if self.ape:
            shape = (1, *self.resolutions[0], self.embed_dim)
            self.position = self.param("absolute_pos_embed", table_init, shape, jnp.float32)
        self.embed_drop = nn.Dropout(self.drop_rate)
        rates = drop_path_schedule(self.drop_path_rate, sum(self.depths))
        first = [sum(self.depths[:stage]) for stage in range(len(self.depths))]
        self.stage = [
            self._stage(stage, rates[first[stage] : first[stage] + depth])
            for stage, depth in enumerate(self.depths)
        ]
        self.norm = LayerNorm(eps, self.dtype)
        if self.num_classes:
            self.head = create_head(self.num_classes)

    def _stage(self, stage: int, rates: tuple[float, ...]) -> Stage:
        still, moved = (
            functools.partial(
                self._block_class,
                self._options,
                attention=self._attention(stage, cut.window_size),
                mlp=self._mlp(stage, shifted=shifted),
                cut=cut,
            )
            for shifted, cut in zip((False, True), self._cuts(stage), strict=True)
        )
        merging = functools.partial(
            PatchMerging, self.norm_eps, self._kernel_init, self.dtype, self._norm_last
        )
        last = stage == len(self.depths) - 1
        merging_or_none = None if last else merging
        norm = functools.partial(LayerNorm, self.norm_eps, self.dtype)
        after = self._norm_after[stage]
        return Stage((still, moved), rates, merging_or_none, self.remat, self.scan, norm, after)

    @property
    def _norm_after(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, the blocks that a norm of the map follows: none."""
        return ((),) * len(self.depths)

    @nn.nowrap
    def _cuts(self, stage: int) -> tuple[Cut, Cut]:
        """Returns how a stage's plain blocks and its shifted blocks cut maps."""
        window, shift = fit_window(
            self.resolutions[stage], self.window_sizes[stage], window_clip=self.window_clip
        )
        moved = shift if self.shift_windows else (0, 0)
        plain, shifted = (Cut(window, by, self.pad_before_roll) for by in ((0, 0), moved))
        return plain, shifted

    @property
    def _options(self) -> BlockOptions:
        return BlockOptions.of(self, kernel_init=self._kernel_init)

    def _attention(self, stage: int, window: Size) -> Callable[..., nn.Module]:
        heads = self.num_heads[stage]
        module = WindowAttention if self.relative_bias else UnbiasedWindowAttention
        return functools.partial(module, heads, self._options, window_size=window)

    def _mlp(self, stage: int, *, shifted: bool) -> Callable[..., nn.Module]:
        del shifted  # the same in both blocks of a pair
        return functools.partial(
            Mlp,
            self._mlp_dim(stage),
            self.act,
            self.drop_rate,
            kernel_init=self._kernel_init,
            bias_init=nn.initializers.zeros_init(),
            dtype=self.dtype,
        )

    def __call__(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b k"]:
        """Classifies normalised images of any size: float32 logits, or features without a head."""
        return self.outputs(images, train=train).logits

    def outputs(self, images: Float[Array, "b h w channels"], *, train: bool = False) -> Outputs:
        """Returns the logits, the `features` and the normed last map, of one pass."""
        features, patches = self.encode(self.embed_patches(images), train=train)
        return Outputs(self.head(features) if self.num_classes else features, features, patches)

    def features(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b c"]:
        """Returns the pooled embedding: the mean of the normed last map, float32."""
        return self.encode(self.embed_patches(images), train=train)[0]

    def feature_maps(
        self,
        images: Float[Array, "b h w channels"],
        *,
        train: bool = False,
        blocks: tuple[int, ...] | None = None,
        norm: bool = False,
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the map after the last block of each stage of `blocks` (default: all stages).

        Maps are before merging. With `norm` the last stage's has the final norm, and the others,
        which no norm of the model is for, have none. Raises UserError where `ape` forbids the size.
        """
        maps = self._stages(self.embed_patches(images), train=train)
        if norm:
            maps = (*maps[:-1], self.norm(maps[-1]))
        return maps if blocks is None else tuple(maps[i] for i in blocks)

    def embed_patches(self, images: Float[Array, "b h w channels"]) -> Float[Array, "b i j c"]:
        """Returns the map of embedded patches, without positions."""
        check_channels(images, self.in_chans)
        x = self.patch_embed(pad_to_multiple(images, pair(self.patch_size)))
        if self.ape and x.shape[1:3] != self.position.shape[1:3]:
            size = "x".join(map(str, images.shape[1:3]))
            raise UserError(
                f"the images are {size}, but with ape=True the model takes only "
                f"img_size={self.img_size}; resize them."
            )
        return x

    def encode_map(self, x: Float[Array, "b i j c"], *, train: bool) -> Float[Array, "b _ _ d"]:
        """Returns the normed last map of embedded patches."""
        return self.norm(self._stages(x, train=train)[-1])

    def encode(
        self, x: Float[Array, "b i j c"], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b _ _ d"]]:
        """Returns the `features` of embedded patches, and their normed last map."""
        x = self.encode_map(x, train=train)
        return x.mean((1, 2)).astype(jnp.float32), x

    def _stages(self, x: Float[Array, "b i j c"], *, train: bool) -> tuple[Array, ...]:
        if self.ape:
            x = x + self.position.astype(x.dtype)
        x = self.embed_drop(x, deterministic=not train)
        maps = []
        for stage in self.stage:
            x, before_merging = stage(x, train=train)
            maps.append(before_merging)
        return tuple(maps)

    @nn.nowrap
    def geometry(self, size: Size | None = None) -> Geometry:
        """Returns the geometry; see `HasGeometry`. Windows fit `img_size`, whatever the `size`."""
        maps = (self if size is None else self.clone(img_size=size)).resolutions
        p, q = pair(self.patch_size)
        blocks = []
        for stage, depth in enumerate(self.depths):
            stride = p << stage, q << stage
            where: dict[str, Any] = {"stage": stage, "size": maps[stage], "stride": stride}
            cuts = self._cuts(stage)
            blocks += [
                BlockGeometry(f"stage_{stage}/block_{i}", cut=cuts[i % 2], **where)
                for i in range(depth)
            ]
        return Geometry(
            tuple(blocks),
            evidence="norm",
            filters=None if self.stem else "patch_embed/proj/kernel",
            attention="attn",
            biases=self.relative_bias,
            positions=(lambda params: params["absolute_pos_embed"][0]) if self.ape else None,
        )

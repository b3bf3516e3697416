"""The fields of a Vision Transformer, and the values derived from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitswin_jax.core.choices import Faults, divisors, near_multiples, wrong_choice
from vitswin_jax.core.types import Params
from vitswin_jax.models.geometry import BlockGeometry, Geometry
from vitswin_jax.models.resnet import total_stride
from vitswin_jax.models.vit_pool import GLOBAL_POOLS, describe_pooling
from vitswin_jax.nn.block import NORM_PLACES, QKV_BIASES, BlockOptions
from vitswin_jax.nn.execution import FOR_SEQUENCES
from vitswin_jax.nn.layers import NORMS, check_stem, pair
from vitswin_jax.nn.mlp import check_gates
from vitswin_jax.nn.posemb import POS_EMBED_PLACES, POS_EMBEDS, create_positions
from vitswin_jax.nn.relative import RELATIVE_MLPS
from vitswin_jax.nn.rotary import Rotary, Rotation
from vitswin_jax.nn.sides import Size


class ViTFields(nn.Module):
    """The fields of a Vision Transformer, part by part; sizes are in `variants.py`.

    Tokens: the prefix is class, distillation, registers, in this order. `dist_token` adds DeiT's
    token and, with `dist_head`, its head, without which the class token alone is read;
    `reg_tokens` are registers; `no_embed_class` gives prefix tokens no position; `pre_norm` norms
    all tokens before the blocks.

    Positions: `pos_embed` (`posemb.POS_EMBEDS`) and where it is added, `pos_embed_at` ("input",
    "every" block its own, "shared" by all blocks); "relative_mlp" and "relative_mlp_swin" have an
    MLP of `rel_pos_dim` channels; `rope_*` rotate queries and keys by the place of their patch
    (`rotary.Rotary`).

    Blocks: fields of the same names as `block.BlockOptions`, which says what they do.

    Head: `global_pool` ("token", "avg", "max", "avgmax", "token_avg": class token and mean side by
    side, "map": attention pooling, with `pool_heads` and `pool_mlp_ratio` where these are not the
    blocks', "query": AIMv2's attention pooling, without an MLP), of patches only or, with
    `pool_include_prefix`, of all tokens; `fc_norm` pools, then norms; without `final_norm` nothing
    is normed; `pre_logits` is the width of a dense + tanh.

    An image's sides must be multiples of `patch_size`, unless `crop_to_patches` is set: then the
    model leaves out the pixels at the right and at the bottom that fill no patch, as the strided
    convolution of every original does (SigLIP's SO400M/14 at 384).

    A hybrid has `resnet_layers`, the depths of the ResNet's stages, and `patch_size` is then of
    patches of its map; `group_norm_eps`, `weight_var_eps` and `weight_std_eps` (the last two of
    `resnet.StdConv`) are timm's, and Google's are 1e-6, 0 and 1e-5.

    `stem` has the widths of 3x3 convolutions before the patches (`layers.ConvStem`), for small
    images and short runs. Patches keep their size in pixels. Only native files have it.
    """

    img_size: int | Size = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool | str = True
    qk_norm: bool = False
    scale_attn_norm: bool = False
    proj_bias: bool = True
    mlp_bias: bool = True
    scale_mlp_norm: bool = False
    act: str = "gelu"
    norm_layer: str = "layernorm"
    norm_at: str = "before"
    norm_eps: float = 1e-6
    class_token: bool = True
    dist_token: bool = False
    dist_head: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False
    pos_embed: str = "learned"
    pos_embed_at: str = "input"
    rel_pos_dim: int = 128
    rope_type: str = "none"
    rope_temperature: float = 10_000.0
    rope_grid_offset: float = 0.0
    rope_grid_indexing: str = "ij"
    rope_rotate_half: bool = False
    rope_ref_grid: tuple[int, int] | None = None
    rope_dtype: str = "float32"
    resnet_layers: tuple[int, ...] | None = None
    stem: tuple[int, ...] = ()
    group_norm_eps: float = 1e-5
    weight_var_eps: float = 1e-8
    weight_std_eps: float = 0.0
    crop_to_patches: bool = False
    patch_bias: bool = True
    patch_norm: bool = False
    pre_norm: bool = False
    init_values: float | None = None
    global_pool: str = "token"
    pool_include_prefix: bool = False
    pool_heads: int | None = None
    pool_mlp_ratio: float | None = None
    fc_norm: bool = False
    final_norm: bool = True
    pre_logits: int | None = None
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
        faults += self.misfit(pair(self.img_size))
        faults.need(self.in_chans > 0, f"in_chans={self.in_chans} must be at least 1")
        faults += check_stem(self.stem, pair(self.patch_size))
        if self.stem and self.resnet_layers is not None:
            faults.append(f"stem={self.stem} needs resnet_layers=None: one of them is first")
        if self.embed_dim % self.num_heads:
            faults.append(
                f"embed_dim={self.embed_dim} is no multiple of num_heads={self.num_heads}, which "
                f"can be {divisors(self.embed_dim)}"
            )
        choices = {
            "attn_impl": FOR_SEQUENCES,
            "pos_embed": POS_EMBEDS,
            "pos_embed_at": POS_EMBED_PLACES,
            "global_pool": GLOBAL_POOLS,
            "qkv_bias": QKV_BIASES,
            "norm_layer": NORMS,
            "norm_at": NORM_PLACES,
        }
        for field, known in choices.items():
            faults += wrong_choice(field, getattr(self, field), known)
        faults += check_gates(self.act, [self._mlp_dim, self._pool_mlp_dim])
        if self._biased and self.pos_embed_at == "input":
            faults.append(f"pos_embed={self.pos_embed!r} needs pos_embed_at='every' or 'shared'")
        if not self.embed_dim % self.num_heads:
            faults += Rotary.of(self).check(self.embed_dim // self.num_heads)
        if self.pool_heads and self.embed_dim % self.pool_heads:
            faults.append(
                f"embed_dim={self.embed_dim} is no multiple of pool_heads={self.pool_heads}, which "
                f"can be {divisors(self.embed_dim)}"
            )
        if self.fc_norm and not self.final_norm:
            faults.append("fc_norm=True needs final_norm=True: it says where that norm is")
        if "token" in self.global_pool and not self.class_token:
            faults.append(f"global_pool={self.global_pool!r} needs class_token=True")
        if self.dist_token and self.global_pool != "token":
            faults.append("dist_token=True needs global_pool='token'")
        faults.check()

    def misfit(self, size: Size) -> list[str]:
        """Returns a line for an image size that patches do not divide, and otherwise none."""
        (h, w), (p, q) = self._map_of(size), pair(self.patch_size)
        remainder = (h % p or w % q) and not self.crop_to_patches
        what = "img_size" if self.resnet_layers is None else "the ResNet's map"
        near = near_multiples((h, w), (p, q))
        line = f"{what}={h}x{w} is no multiple of patch_size={p}x{q}, as {near} are"
        return [line] if remainder or h < p or w < q else []

    @property
    def takes_any_size(self) -> bool:
        """Whether images may have another size than `img_size`: nothing is made for one grid."""
        return self.pos_embed == "none"

    @property
    def grid(self) -> Size:
        """The patch grid, (height, width) in tokens."""
        return self.grid_of(pair(self.img_size))

    def grid_of(self, size: Size) -> Size:
        """Returns the patch grid of images of a size, (height, width)."""
        (h, w), (p, q) = self._map_of(size), pair(self.patch_size)
        return h // p, w // q

    def _map_of(self, size: Size) -> Size:
        """Returns (height, width) of what is cut into patches: the image or the ResNet's map."""
        stride = total_stride(self.resnet_layers)
        return -(-size[0] // stride), -(-size[1] // stride)

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return self.class_token + self.dist_token + self.reg_tokens

    @property
    def _heads(self) -> int:
        """The number of tokens with a head of their own: two with `dist_token` and `dist_head`."""
        return 2 if self.dist_token and self.dist_head else 1

    @property
    def _biased(self) -> bool:
        """Whether positions are biases of the attention, not embeddings."""
        return self.pos_embed == "relative" or self.pos_embed in RELATIVE_MLPS

    @property
    def _options(self) -> BlockOptions:
        return BlockOptions.of(self)

    @property
    def _mlp_dim(self) -> int:
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def _pool_mlp_dim(self) -> int:
        ratio = self.mlp_ratio if self.pool_mlp_ratio is None else self.pool_mlp_ratio
        return round(self.embed_dim * ratio)

    @nn.nowrap
    def _create_positions(self, param: Callable[..., Array]) -> Float[Array, "_ n _"]:
        return create_positions(
            param,
            kind=self.pos_embed,
            grid=self.grid,
            prefix=self.num_prefix_tokens,
            embed_prefix=not self.no_embed_class,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            hidden_dim=self.rel_pos_dim,
        )

    @nn.nowrap
    def _create_rotation(self, param: Callable[..., Array], grid: Size) -> Rotation:
        """Returns a block's own rotation of a grid, from its `param`."""
        heads, prefix = self.num_heads, self.num_prefix_tokens
        head_dim = self.embed_dim // heads
        return Rotary.of(self).own_rotation(param, grid, prefix, heads, head_dim)

    @nn.nowrap
    def geometry(self, size: Size | None = None) -> Geometry:
        """Returns the geometry; see `HasGeometry`. With tables, images are of `img_size` only."""
        grid = self.grid_of(size if size and self.takes_any_size else pair(self.img_size))
        hybrid, prefix = self.resnet_layers is not None, self.num_prefix_tokens
        pixels = total_stride(self.resnet_layers)
        p, q = pair(self.patch_size)
        where: dict[str, Any] = {"stage": 0, "size": grid, "stride": (p * pixels, q * pixels)}
        pooling = describe_pooling(
            self.global_pool,
            prefix=prefix,
            patches=grid[0] * grid[1],
            include_prefix=self.pool_include_prefix,
            heads=self._heads,
        )
        added = self.pos_embed != "none" and not self._biased and self.pos_embed_at != "every"

        def positions(params: Params) -> Float[Array, "h w c"]:
            table = self._create_positions(lambda name, *_: params[name])
            return table[0, prefix:].reshape(*self.grid, -1)

        return Geometry(
            tuple(BlockGeometry(f"block_{i}", prefix=prefix, **where) for i in range(self.depth)),
            # A head that reads the class token sees no other token after the last block.
            evidence=f"block_{self.depth - 1}",
            filters=None if hybrid or self.stem else "patch_embed/proj/kernel",
            attention="attn",
            biases=self._biased,
            positions=positions if added else None,
            pooling=pooling,
            normed=self.final_norm and not self.fc_norm,
        )
